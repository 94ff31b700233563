"""What the commands say on standard error, always one line at a time."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "scvi-lfm"


class CommandError(Exception):
    """A mistake in how a command was called; its text says what to do instead."""


def say(text: str) -> None:
    """One line on standard error: standard output is for results."""
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def one_line(error: BaseException | str) -> str:
    """The text of an error or a warning without line breaks."""
    text: object = error
    if isinstance(error, KeyError) and error.args:
        text = error.args[0]  # str() of a KeyError is quoted
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = str(error) or "not enough memory"
    return " ".join(str(text).split()) or type(error).__name__


@contextmanager
def package_warnings() -> Iterator[None]:
    """Show this package's warnings, one line each, and hide those of the libraries below it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"scvi_lfm\b")
        warnings.showwarning = _show_warning
        yield


# of values that a likelihood is not made for, by what they look like: the options that mend it
_ADVICE = {
    "counts": "Leave --likelihood out to fit counts as such, or pass --normalize.",
    "unlogged": "Pass --normalize if these are no logs, or --layer NAME for a layer of log values or whole counts.",
    "logged": "Leave --normalize out if they are, or pass --layer NAME for a layer of counts.",
    "scaled": "Pass --layer NAME for a layer of log-normalised values from before they were scaled.",
}


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    looks = getattr(message, "looks", None)
    text = one_line(message) if looks is None else f"{getattr(message, 'seen', '')} {_ADVICE[looks]}"
    say(f"warning: {text}")
