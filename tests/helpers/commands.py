"""The command line, run in this process."""

from __future__ import annotations

from scvi_lfm._cli import main


def run(*arguments: object) -> int:
    """The status of a command, of its arguments as anything that may be written."""
    return main([str(argument) for argument in arguments])
