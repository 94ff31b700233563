"""The command `scvi-lfm`: the package from a shell."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ._messages import CommandError, one_line, package_warnings, say
from ._parser import build_parser

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# what the package raises when it cannot do what was asked
_MISTAKES = (CommandError, FloatingPointError, KeyError, MemoryError, OSError, TypeError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        The arguments; None takes those of the process.

    Returns
    -------
    0, or 2 if what was asked cannot be done, or 130 after Ctrl-C.
    """
    show_traceback = False
    try:
        arguments = build_parser().parse_args(argv)
        show_traceback = arguments.traceback
        with package_warnings():
            # torch and scanpy come with it
            from ._commands import COMMANDS

            COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
    except BrokenPipeError:
        # the reader of our output has gone; what is left must not be written as Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except _MISTAKES as error:
        if show_traceback:
            raise
        say(f"error: {one_line(error)}")
        return 2
    return 0
