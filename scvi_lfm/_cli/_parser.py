"""The command line: what can be asked for. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from .._fit_arguments import ARGUMENTS, DEFAULTS
from ._messages import PROGRAM, CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

# as in `tl.anomalies`, which takes seconds to import; a test compares them
DIRECTIONS = ("both", "up", "down")
LISTED_BY = ("auto", "lfdr", "q", "either")

_DESCRIPTION = """\
A Bayesian factor model for single-cell data: embeddings of cells and genes,
gene ranking and anomalies, all with their uncertainty.

Data are read from .h5ad or .zarr and written to .h5ad or .zarr, by suffix. An
output in the format of the input is a copy of it with the new fields in it.
Results go to standard output, messages to standard error."""

_EXAMPLES = """\
examples:
  scvi-lfm demo
  scvi-lfm fit counts.h5ad fitted.h5ad
  scvi-lfm rank fitted.h5ad --groupby leiden --csv genes.csv
  scvi-lfm anomalies fitted.h5ad --direction up
  scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad
  scvi-lfm merge counts.h5ad results.h5ad fitted.h5ad

scvi-lfm COMMAND --help says more about each."""

_FIT = """\
Fit the model and write the data with the embeddings of cells and genes in it.

Whole numbers are fitted as the counts that they are (negative binomial), other
values with a Normal. --normalize log-normalises counts as they are read and fits
a Normal, which is faster."""

_FIT_EXAMPLES = """\
examples:
  scvi-lfm fit counts.h5ad fitted.h5ad
  scvi-lfm fit data.zarr fitted.zarr --layer counts --n-factors 50
  scvi-lfm fit data.zarr --in-place
  scvi-lfm fit counts.h5ad results.h5ad --results-only
  scvi-lfm fit peaks.h5ad fitted.h5ad --likelihood bernoulli
  scvi-lfm fit counts.h5ad fitted.h5ad --normalize --noise gene --seed 1"""

_RANK = """\
Rank genes by how well they align with groups of cells, from a stored fit.

Prints the top genes of each group: score (difference of expected values, for
counts of log rates), sd (its posterior standard deviation), lfsr (local false
sign rate) and log2 fold change (approximate for log-normalised values)."""

_RANK_EXAMPLES = """\
examples:
  scvi-lfm rank fitted.h5ad --groupby leiden
  scvi-lfm rank fitted.h5ad --groupby leiden --groups 3 7 --reference 1
  scvi-lfm rank fitted.h5ad --mask is_stimulated --csv genes.csv"""

_ANOMALIES = """\
List cell-gene values that the model did not expect, from a stored fit.

Prints the observed and the expected value, q (adjusted tail probability),
log_ratio (log likelihood of "from other cells" over "from this cell"), lfdr
(local false discovery rate) and the direction."""

_ANOMALIES_EXAMPLES = """\
examples:
  scvi-lfm anomalies fitted.h5ad --direction up
  scvi-lfm anomalies fitted.h5ad --fdr 0.01 --csv entries.csv --out scored.h5ad"""

_PROJECT = """\
Place new cells in the embedding of a fitted reference, without a refit.

Genes are matched by name. The values must be of the reference's kind: counts for
a reference fitted to counts, with --normalize or without, else normalised as those
were."""

_PROJECT_EXAMPLES = """\
examples:
  scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad
  scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad --layer counts"""

_MERGE = """\
Put results that were written with --results-only back into their data.

Cells and genes are matched by name. Earlier results of the same names are
replaced, and nothing else."""

_MERGE_EXAMPLES = """\
examples:
  scvi-lfm merge counts.h5ad results.h5ad fitted.h5ad
  scvi-lfm merge data.zarr results.h5ad --in-place"""

_DEMO = """\
Run everything on 1,200 sorted blood cells that ship with the package: fit their
counts, rank the genes of each type, find anomalies, write the data and figures."""


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
    parser = Parser(prog=PROGRAM, description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str, examples: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=description, epilog=examples, formatter_class=_Formatter
        )
        command.add_argument("--traceback", action="store_true", help="show where in Python an error arose")
        return command

    _add_demo(add("demo", "run everything on data that ship with the package", _DEMO))
    _add_fit(add("fit", "fit the model to counts, or to log-normalised values", _FIT, _FIT_EXAMPLES))
    _add_rank(add("rank", "rank genes for groups of cells", _RANK, _RANK_EXAMPLES))
    _add_anomalies(add("anomalies", "list values that should not be there", _ANOMALIES, _ANOMALIES_EXAMPLES))
    _add_project(add("project", "place new cells in a fitted embedding", _PROJECT, _PROJECT_EXAMPLES))
    _add_merge(add("merge", "put results back into their data", _MERGE, _MERGE_EXAMPLES))
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("scvi-lfm-demo"), metavar="DIR", help="folder to write to")


def _add_fit(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="data to fit (.h5ad or .zarr)")
    _add_out(command, "where to write them with the fit (.h5ad or .zarr)")
    for name, known in ARGUMENTS.items():
        if known.help:
            _add_argument_of_fit(command, name)
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
