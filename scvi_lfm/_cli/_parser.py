"""The command line: what can be asked for. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._fit_arguments import ARGUMENTS, DEFAULTS, FITTING, MODEL, READ, WRITTEN
from . import _texts as texts
from ._complaints import Parser, one_of
from ._completion import SHELLS, Completion
from ._messages import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Sequence

# groups of options besides those of `fit`
FILES, ASKED, COMPUTED, PRINTED = "files", "what is asked", "how it is computed", "what is printed"
SHOWN = "what is shown"
# as in `tl.anomalies`, which takes seconds to import; a test compares them
DIRECTIONS = ("both", "up", "down")
LISTED_BY = ("auto", "lfdr", "q", "either")
RANKBY = ("scores", "scores/sd")  # of `tl.rank_genes`


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
    parser = Parser(prog=PROGRAM, **_described(texts.PROGRAM))
    commands = parser.add_subparsers(prog=PROGRAM, title="commands", dest="command", metavar="COMMAND", required=True)

    def add(name: str, about: texts.About) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about.summary, **_described(about))

    _add_demo(add("demo", texts.DEMO))
    _add_fit(add("fit", texts.FIT))
    _add_rank(add("rank", texts.RANK))
    _add_anomalies(add("anomalies", texts.ANOMALIES))
    _add_project(add("project", texts.PROJECT))
    _add_explore(add("explore", texts.EXPLORE))
    _add_merge(add("merge", texts.MERGE))
    for command in commands.choices.values():
        _add_help(command).add_argument("--traceback", action="store_true", help="show where in Python an error arose")
    options = _add_help(parser)
    options.add_argument(
        "--version", action="version", version=f"{PROGRAM} {__version__}", help="print the version and end"
    )
    options.add_argument(
        "--completion",
        action=Completion,
        choices=SHELLS,
        help="print a script by which the tab key of a shell completes commands and options",
    )
    return parser


def _described(about: texts.About) -> dict[str, Any]:
    return {
        "usage": f"%(prog)s {about.usage}",
        "description": about.text,
        "epilog": about.epilog,
        "formatter_class": _Formatter,
        "add_help": False,
    }


def _add_help(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    others = command.add_argument_group("other options")
    others.add_argument("-h", "--help", action="help", help="print this and end")
    return others


def _add_demo(command: argparse.ArgumentParser) -> None:
    written = command.add_argument_group(WRITTEN)
    written.add_argument("--out", type=Path, default=Path("scvi-lfm-demo"), metavar="DIR", help="folder to write to")


def _add_fit(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group(FILES)
    files.add_argument("data", type=Path, metavar="IN", help="data to fit (.h5ad or .zarr)")
    _add_out(files, "where to write them with the fit (.h5ad or .zarr)")
    for title in (READ, MODEL, FITTING, WRITTEN):
        group = command.add_argument_group(title)
        for name, known in ARGUMENTS.items():
            if known.help and known.group == title:
                _add_argument_of_fit(group, name)
    _add_ways(group)
    group.add_argument(
        "--plan", action="store_true", help="print what the fit would read, hold and take, and do nothing else"
    )


def _add_argument_of_fit(group: argparse._ArgumentGroup, name: str) -> None:
    known = ARGUMENTS[name]
    option = known.option or name.replace("_", "-")
    kind: dict[str, Any] = {"metavar": known.metavar or option.upper()}
    if known.choices:
        kind = {"choices": known.choices, "type": one_of(known.choices)}
    elif known.stored == "columns":
        kind["nargs"] = "+"
    elif known.minimum is not None or known.stored == "seed":
        kind["type"] = _number_or_auto if known.words else int
    elif known.positive:
        kind["type"] = float
    if known.alone is not None:
        kind |= {"nargs": "?", "const": known.alone}
    group.add_argument(f"--{option}", dest=name, default=DEFAULTS[name], help=known.help, **kind)


def _number_or_auto(text: str) -> int | str:
    """A number of factors; argparse names what it could not read."""
    return text if text == "auto" else int(text)


_number_or_auto.__name__ = "int or auto"


def _add_rank(command: argparse.ArgumentParser) -> None:
    read = _add_fitted(command)
    asked = command.add_argument_group(ASKED)
    cells = asked.add_mutually_exclusive_group(required=True)
    cells.add_argument("--groupby", metavar="COLUMN", help="column of obs: rank genes for each of its groups")
    cells.add_argument("--mask", metavar="COLUMN", help="boolean column of obs: rank genes for these cells")
    asked.add_argument("--groups", nargs="+", metavar="GROUP", help="only these groups (default: all)")
    asked.add_argument(
        "--reference", default="rest", help="what to compare with: 'rest', 'average' (the average cell), or a group"
    )
    asked.add_argument(
        "--rankby", choices=RANKBY, default="scores", help="what orders genes: how far groups differ, or how surely"
    )
    _add_key(read)
    _add_results(command, "genes to print for each group; the files hold all", "rank_genes_lfm")


def _add_anomalies(command: argparse.ArgumentParser) -> None:
    read = _add_fitted(command)
    _add_layer(read, "layer to read (default: the one that was fitted)")
    _add_key(read)
    asked = command.add_argument_group(ASKED)
    asked.add_argument("--direction", choices=DIRECTIONS, default="both", help="values too high, too low, or both")
    asked.add_argument(
        "--by",
        choices=LISTED_BY,
        default="auto",
        help="list values that look as if they came from other cells (lfdr), that are improbable here (q), or either;"
        " 'auto': either of counts, by lfdr of other values",
    )
    asked.add_argument("--fdr", type=float, default=0.1, help="level at which a value is listed")
    asked.add_argument("--max-entries", type=int, default=100_000, metavar="N", help="values to list at most")
    _add_argument_of_fit(command.add_argument_group(COMPUTED), "device")
    _add_results(command, "values to print; the files hold all", "lfm_anomaly")


def _add_project(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group(FILES)
    files.add_argument("data", type=Path, metavar="IN", help="new cells (.h5ad or .zarr)")
    files.add_argument("reference", type=Path, metavar="REFERENCE", help="fitted data (.h5ad or .zarr)")
    _add_out(files, "where to write the new cells (.h5ad or .zarr)")
    read = command.add_argument_group(READ)
    _add_layer(read, "layer of IN to read (default: the one that was fitted)")
    read.add_argument(
        "--normalize",
        action="store_true",
        help="may be left out: new counts are log-normalised where the reference was fitted so",
    )
    read.add_argument(
        "--size-factors",
        metavar="COLUMN",
        help="for counts: column of obs with the cells' size factors (default: as the reference's, on their scale)",
    )
    read.add_argument("--key", default="lfm", help="name of the reference's fit")
    _add_argument_of_fit(command.add_argument_group(COMPUTED), "device")
    written = command.add_argument_group(WRITTEN)
    written.add_argument("--key-added", default="lfm", metavar="KEY", help="stem of the names to store under")
    _add_ways(written)


def _add_explore(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group(FILES)
    files.add_argument("data", type=Path, metavar="IN", help="fitted data (.h5ad or .zarr)")
    files.add_argument("page", type=Path, metavar="PAGE", help="page to write (.html)")
    read = command.add_argument_group(READ)
    read.add_argument(
        "--basis",
        metavar="NAME",
        help="entry of obsm that says where cells lie (default: X_umap if there is one, else the first two factors)",
    )
    read.add_argument("--dimensions", nargs=2, type=int, metavar="N", help="two columns of the basis, counted from 0")
    read.add_argument(
        "--columns", nargs="+", metavar="COLUMN", help="columns of obs to take along (default: all of few groups)"
    )
    _add_key(read)
    shown = command.add_argument_group(SHOWN)
    shown.add_argument("--color", nargs="+", metavar="NAME", help="columns of obs, or genes, to colour cells by")
    shown.add_argument("--title", help="title of the page (default: the name of IN)")
    written = command.add_argument_group(WRITTEN)
    written.add_argument("--force", action="store_true", help="replace a file that is no earlier page")


def _add_merge(command: argparse.ArgumentParser) -> None:
    files = command.add_argument_group(FILES)
    files.add_argument("data", type=Path, metavar="DATA", help="the data (.h5ad or .zarr)")
    files.add_argument("results", type=Path, metavar="RESULTS", help="results of them (.h5ad or .zarr)")
    _add_out(files, "where to write the data with the results (.h5ad or .zarr)")
    written = command.add_argument_group(WRITTEN)
    _add_in_place(written)
    _add_force(written)


def _add_out(files: argparse._ArgumentGroup, meaning: str) -> None:
    files.add_argument("out", type=Path, metavar="OUT", nargs="?", help=meaning)


def _add_fitted(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    files = command.add_argument_group(FILES)
    files.add_argument("data", type=Path, metavar="IN", help="fitted data (.h5ad or .zarr)")
    return command.add_argument_group(READ)


def _add_key(read: argparse._ArgumentGroup) -> None:
    read.add_argument("--key", default="lfm", help="name of the fit")


def _add_layer(read: argparse._ArgumentGroup, meaning: str) -> None:
    read.add_argument("--layer", metavar="NAME", help=meaning)


def _add_results(command: argparse.ArgumentParser, n_top: str, key_added: str) -> None:
    command.add_argument_group(PRINTED).add_argument("--n-top", type=int, default=10, metavar="N", help=n_top)
    written = command.add_argument_group(WRITTEN)
    written.add_argument("--csv", type=Path, metavar="FILE", help="write the table (.csv)")
    written.add_argument("--out", type=Path, metavar="FILE", help="write the data with the result (.h5ad or .zarr)")
    written.add_argument("--key-added", default=key_added, metavar="KEY", help="key of the result in --out")
    _add_ways(written)


def _add_ways(written: argparse._ArgumentGroup) -> None:
    written.add_argument(
        "--results-only",
        action="store_true",
        help="write a small file without X and layers; scvi-lfm merge puts it back",
    )
    _add_in_place(written)
    _add_force(written)


def _add_in_place(written: argparse._ArgumentGroup) -> None:
    written.add_argument("--in-place", action="store_true", help="write into the zarr store that is read")


def _add_force(written: argparse._ArgumentGroup) -> None:
    written.add_argument(
        "--force",
        action="store_true",
        help="replace an input that is named as the output too, or a file that is no earlier output",
    )
