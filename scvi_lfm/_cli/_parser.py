"""The command line: what can be asked for. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from .._fit_arguments import ARGUMENTS, DEFAULTS
from . import _texts as texts
from ._explore import ABOUT, EXAMPLES, add_explore
from ._messages import PROGRAM, CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

# as in `tl.anomalies`, which takes seconds to import; a test compares them
DIRECTIONS = ("both", "up", "down")
LISTED_BY = ("auto", "lfdr", "q", "either")


class Parser(argparse.ArgumentParser):
    """A parser that raises its complaints instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong and where help is."""
        msg = f"{message} (see {self.prog} --help)"
        raise CommandError(msg)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Texts as they are written here, and beside an option its default where that is a value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def with_values(argv: Sequence[str]) -> list[str]:
    """The arguments with a value behind each option of `fit` that may do without: argparse would take IN for one."""
    alone = {f"--{known.option or name}": known.alone for name, known in ARGUMENTS.items() if known.alone is not None}
    given = list(argv)
    if given[:1] != ["fit"]:
        return given
    return [
        f"{text}={alone[text]:g}" if text in alone and not _is_number(after) else text
        for text, after in zip(given, [*given[1:], ""], strict=True)
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(prog=PROGRAM, description=texts.DESCRIPTION, epilog=texts.EXAMPLES, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str, examples: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=description, epilog=examples, formatter_class=_Formatter
        )
        command.add_argument("--traceback", action="store_true", help="show where in Python an error arose")
        return command

    _add_demo(add("demo", "run everything on data that ship with the package", texts.DEMO))
    _add_fit(add("fit", "fit the model to counts, or to log-normalised values", texts.FIT, texts.FIT_EXAMPLES))
    _add_rank(add("rank", "rank genes for groups of cells", texts.RANK, texts.RANK_EXAMPLES))
    _add_anomalies(add("anomalies", "list values that should not be there", texts.ANOMALIES, texts.ANOMALIES_EXAMPLES))
    _add_project(add("project", "place new cells in a fitted embedding", texts.PROJECT, texts.PROJECT_EXAMPLES))
    add_explore(add("explore", "write a page in which cells are selected and their genes ranked", ABOUT, EXAMPLES))
    _add_merge(add("merge", "put results back into their data", texts.MERGE, texts.MERGE_EXAMPLES))
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("scvi-lfm-demo"), metavar="DIR", help="folder to write to")


def _add_fit(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="data to fit (.h5ad or .zarr)")
    _add_out(command, "where to write them with the fit (.h5ad or .zarr)")
    for name, known in ARGUMENTS.items():
        if known.help:
            _add_argument_of_fit(command, name)
    command.add_argument(
        "--plan", action="store_true", help="print what the fit would read, hold and take, and do nothing else"
    )
    _add_ways(command)


def _add_argument_of_fit(command: argparse.ArgumentParser, name: str) -> None:
    known = ARGUMENTS[name]
    option = known.option or name.replace("_", "-")
    kind: dict[str, Any] = {"metavar": known.metavar or option.upper()}
    if known.choices:
        kind = {"choices": known.choices}
    elif known.stored == "columns":
        kind["nargs"] = "+"
    elif known.minimum is not None or known.stored == "seed":
        kind["type"] = _number_or_auto if known.words else int
    elif known.positive:
        kind["type"] = float
    if known.alone is not None:
        kind |= {"nargs": "?", "const": known.alone}
    command.add_argument(f"--{option}", dest=name, default=DEFAULTS[name], help=known.help, **kind)


def _number_or_auto(text: str) -> int | str:
    """A number of factors; argparse names what it could not read."""
    return text if text == "auto" else int(text)


_number_or_auto.__name__ = "int or auto"


def _add_rank(command: argparse.ArgumentParser) -> None:
    _add_fitted(command)
    cells = command.add_mutually_exclusive_group(required=True)
    cells.add_argument("--groupby", metavar="COLUMN", help="column of obs: rank genes for each of its groups")
    cells.add_argument("--mask", metavar="COLUMN", help="boolean column of obs: rank genes for these cells")
    command.add_argument("--groups", nargs="+", metavar="GROUP", help="only these groups (default: all)")
    command.add_argument(
        "--reference", default="rest", help="what to compare with: 'rest', 'average' (the average cell), or a group"
    )
    _add_results(command, "genes to print for each group; the files hold all", "rank_genes_lfm")


def _add_anomalies(command: argparse.ArgumentParser) -> None:
    _add_fitted(command)
    _add_layer(command, "layer to read (default: the one that was fitted)")
    command.add_argument("--direction", choices=DIRECTIONS, default="both", help="values too high, too low, or both")
    command.add_argument(
        "--by",
        choices=LISTED_BY,
        default="auto",
        help="list values that look as if they came from other cells (lfdr), that are improbable here (q), or either;"
        " 'auto': either of counts, by lfdr of other values",
    )
    command.add_argument("--fdr", type=float, default=0.1, help="level at which a value is listed")
    command.add_argument("--max-entries", type=int, default=100_000, metavar="N", help="values to list at most")
    _add_argument_of_fit(command, "device")
    _add_results(command, "values to print; the files hold all", "lfm_anomaly")


def _add_project(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="new cells (.h5ad or .zarr)")
    command.add_argument("reference", type=Path, metavar="REFERENCE", help="fitted data (.h5ad or .zarr)")
    _add_out(command, "where to write the new cells (.h5ad or .zarr)")
    _add_layer(command, "layer of IN to read (default: the one that was fitted)")
    command.add_argument(
        "--normalize",
        action="store_true",
        help="may be left out: new counts are log-normalised where the reference was fitted so",
    )
    command.add_argument(
        "--size-factors",
        metavar="COLUMN",
        help="for counts: column of obs with the cells' size factors (default: as the reference's, on their scale)",
    )
    _add_argument_of_fit(command, "device")
    command.add_argument("--key", default="lfm", help="name of the reference's fit")
    command.add_argument("--key-added", default="lfm", help="stem of the names to store under")
    _add_ways(command)


def _add_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="DATA", help="the data (.h5ad or .zarr)")
    command.add_argument("results", type=Path, metavar="RESULTS", help="results of them (.h5ad or .zarr)")
    _add_out(command, "where to write the data with the results (.h5ad or .zarr)")
    _add_in_place(command)
    _add_force(command)


def _add_out(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument("out", type=Path, metavar="OUT", nargs="?", help=meaning)


def _add_fitted(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="fitted data (.h5ad or .zarr)")
    command.add_argument("--key", default="lfm", help="name of the fit")


def _add_layer(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument("--layer", metavar="NAME", help=meaning)


def _add_results(command: argparse.ArgumentParser, n_top: str, key_added: str) -> None:
    command.add_argument("--n-top", type=int, default=10, metavar="N", help=n_top)
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the table (.csv)")
    command.add_argument("--out", type=Path, metavar="FILE", help="write the data with the result (.h5ad or .zarr)")
    command.add_argument("--key-added", default=key_added, metavar="KEY", help="key of the result in --out")
    _add_ways(command)


def _add_ways(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--results-only",
        action="store_true",
        help="write a small file without X and layers; scvi-lfm merge puts it back",
    )
    _add_in_place(command)
    _add_force(command)


def _add_in_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--in-place", action="store_true", help="write into the zarr store that is read")


def _add_force(command: argparse.ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="replace an input if it is named as the output too")
