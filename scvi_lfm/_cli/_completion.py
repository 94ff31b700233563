"""Scripts by which shells complete commands, options and files, made by shtab from the parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._messages import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

SHELLS = ("bash", "zsh", "fish")


class Completion(argparse.Action):
    """An option that prints the script of a shell and ends, as --help and --version do."""

    def __init__(self, **known: Any) -> None:
        super().__init__(**known | {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print and end."""
        print(completion_script(parser, str(values)))
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of a shell, one of `SHELLS`."""
    try:
        import shtab
    except ImportError as error:
        msg = "completion scripts are made by shtab, which is not installed: pip install shtab"
        raise CommandError(msg) from error
    for action in _actions(parser):
        if action.type is Path:
            # read by shtab
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            found += [option for command in action.choices.values() for option in _actions(command)]
    return found
