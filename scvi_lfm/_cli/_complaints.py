"""What the command line says of options and words that it does not know."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from .._spelling import nearest_choice
from ._messages import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Parser(argparse.ArgumentParser):
    """A parser that raises its complaints instead of ending the process, and says which option was meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and raise at what no command knows."""
        given, others = self.parse_known_args(args, namespace)
        if others:
            commands = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
            command = commands.choices[given.command]
            command.error(f"unrecognized arguments: {' '.join(others)}{_meant(others, command)}")
        return given

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong and where help is."""
        msg = f"{message} (see {self.prog} --help)"
        raise CommandError(msg)


def _meant(others: Sequence[str], command: argparse.ArgumentParser) -> str:
    """Words for the option that was meant by the first that there is not; empty where nothing is like it."""
    from .._calls import meant_by  # numpy and pandas come with it

    name = next((text for text in others if text.startswith("--")), "").partition("=")[0]
    options = {action.dest: action.option_strings[-1] for action in command._actions if action.option_strings}
    spelled = {option.removeprefix("--").replace("-", "_"): option for option in options.values()}
    near = [(options | spelled)[near] for near in meant_by(name[2:].replace("-", "_"), [*spelled, *options])]
    return f". Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Type of an option that takes one of a few words, whose complaint is that of Python."""

    def chosen(text: str) -> str:
        if text not in choices:
            near = nearest_choice(text, choices)
            meant = "" if near is None else f". Did you mean {near}?"
            msg = f"must be one of {', '.join(choices)}, found {text!r}{meant}"
            raise argparse.ArgumentTypeError(msg)
        return text

    return chosen
