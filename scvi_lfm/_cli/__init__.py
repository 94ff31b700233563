"""The command `scvi-lfm`: the package from a shell."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._memory import naming_memory
from .._settings import settings
from ._messages import CommandError, one_line, package_warnings, say
from ._parser import build_parser, with_values
from ._signals import stoppable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main"]

# what the package raises when it cannot do what was asked
_MISTAKES = (CommandError, FloatingPointError, KeyError, TypeError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        The arguments; None takes those of the process.

    Returns
    -------
    0, or 2 if what was asked cannot be done, 1 if the disk or the memory has no room for it, or 128 and the number of
    the signal that ended it: 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments, show_traceback = None, False
    try:
        with stoppable():
            arguments = build_parser().parse_args(with_values(sys.argv[1:] if argv is None else argv))
            show_traceback = arguments.traceback
            with package_warnings(), naming_memory(f"{arguments.command} these data"):
                # torch and scanpy come with it
                from ..inference.progress import beating
                from ._commands import COMMANDS

                with beating(arguments.command, shown=settings.progress):
                    COMMANDS[arguments.command](arguments)
                    _flush_output()
    except BrokenPipeError:
        _drop_output()  # its reader has gone
        return 0
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        say("interrupted" if number == signal.SIGINT else "terminated")
        for note in getattr(error, "__notes__", ()):
            say(note)
        return 128 + number
    except (*_MISTAKES, MemoryError, OSError) as error:
        if show_traceback:
            raise
        say(f"error: {_inputs(arguments, error)}{one_line(error)}")
        return 2 if isinstance(error, _MISTAKES) else 1
    return 0


def _inputs(arguments: argparse.Namespace | None, error: BaseException) -> str:
    """The files that were read, where a tool and not a command found something wrong."""
    if isinstance(error, (CommandError, MemoryError, OSError)):
        return ""
    paths = [getattr(arguments, name, None) for name in ("data", "reference")]
    named = " onto ".join(str(path) for path in paths if isinstance(path, Path))
    return f"{named}: " if named else ""


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        raise


def _drop_output() -> None:
    """What is left of the output must not be written as Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
