"""The command line: what can be asked for. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ._messages import PROGRAM, CommandError

# as in `tl.fit` and `tl.anomalies`, which take seconds to import; a test compares them
LIKELIHOODS = ("auto", "normal", "student_t", "poisson", "negative_binomial", "bernoulli", "ordinal")
NOISES = ("shared", "gene", "cell_gene")
FAMILIES = ("row_block", "mean_field")
ENGINES = ("natural_gradient", "pyro")
DIRECTIONS = ("both", "up", "down")
LISTED_BY = ("auto", "lfdr", "q", "either")

_DESCRIPTION = """\
A Bayesian factor model for single-cell data: embeddings of cells and genes,
gene ranking and anomalies, all with their uncertainty.

Data are read from .h5ad or .zarr and written to .h5ad or .zarr, by suffix.
Results go to standard output, messages to standard error."""

_EXAMPLES = """\
examples:
  scvi-lfm demo
  scvi-lfm fit counts.h5ad fitted.h5ad
  scvi-lfm rank fitted.h5ad --groupby leiden --csv genes.csv
  scvi-lfm anomalies fitted.h5ad --direction up
  scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad

scvi-lfm COMMAND --help says more about each."""

_FIT = """\
Fit the model and write the data with the embeddings of cells and genes in it.

Whole numbers are fitted as the counts that they are (negative binomial), other
values with a Normal. --normalize log-normalises counts first and fits a Normal,
which is faster."""

_FIT_EXAMPLES = """\
examples:
  scvi-lfm fit counts.h5ad fitted.h5ad
  scvi-lfm fit data.zarr fitted.zarr --layer counts --n-factors 50
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
a reference fitted to counts, else normalised as those were."""

_PROJECT_EXAMPLES = """\
examples:
  scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad
  scvi-lfm project new_counts.h5ad normal.h5ad placed.h5ad --normalize"""

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
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("scvi-lfm-demo"), metavar="DIR", help="folder to write to")


def _add_fit(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="data to fit (.h5ad or .zarr)")
    command.add_argument("out", type=Path, metavar="OUT", help="where to write them with the fit (.h5ad or .zarr)")
    _add_layer(command, "layer to read (default: X)")
    _add_normalize(command)
    command.add_argument("--likelihood", choices=LIKELIHOODS, default="auto", help="'auto' goes by the values")
    _add_size_factors(command, "default: total counts over their mean")
    command.add_argument(
        "--n-factors", type=_number_or_auto, default=30, metavar="N", help="number of factors, or auto"
    )
    command.add_argument(
        "--noise",
        choices=NOISES,
        default="shared",
        help="of a Normal: one level, one for each gene, or one for each cell and gene",
    )
    command.add_argument(
        "--covariates", nargs="+", metavar="COLUMN", help="columns of obs to tell apart from the cells, such as batch"
    )
    command.add_argument(
        "--observed",
        choices=("all", "stored"),
        default="all",
        help="whether all entries are data, or only those that a sparse matrix stores, as of ratings",
    )
    command.add_argument("--family", choices=FAMILIES, default="row_block", help="variational family")
    command.add_argument("--engine", choices=ENGINES, default="natural_gradient", help="how to fit")
    command.add_argument("--mask-var", metavar="COLUMN", help="boolean column of var: the genes to fit (default: all)")
    command.add_argument("--batch-size", type=int, metavar="N", help="cells in a minibatch (default: chosen)")
    command.add_argument("--max-epochs", type=int, metavar="N", help="passes over the cells at most (default: chosen)")
    command.add_argument("--tol", type=float, default=0.005, help="share of the gain that may be missing at the end")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random numbers")
    _add_device(command)
    command.add_argument("--key", default="lfm", help="stem of the names that the fit is stored under")
    _add_force(command)


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
    _add_device(command)
    _add_results(command, "values to print; the files hold all", "lfm_anomaly")


def _add_project(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="new cells (.h5ad or .zarr)")
    command.add_argument("reference", type=Path, metavar="REFERENCE", help="fitted data (.h5ad or .zarr)")
    command.add_argument("out", type=Path, metavar="OUT", help="where to write the new cells (.h5ad or .zarr)")
    _add_layer(command, "layer of IN to read (default: the one that was fitted)")
    _add_normalize(command)
    _add_size_factors(command, "default: as the reference's, on their scale")
    _add_device(command)
    command.add_argument("--key", default="lfm", help="name of the reference's fit")
    command.add_argument("--key-added", default="lfm", help="stem of the names to store under")
    _add_force(command)


def _add_fitted(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, metavar="IN", help="fitted data (.h5ad or .zarr)")
    command.add_argument("--key", default="lfm", help="name of the fit")


def _add_layer(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument("--layer", metavar="NAME", help=meaning)


def _add_normalize(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--normalize",
        action="store_true",
        help="write log1p of counts per 10,000 into the layer 'lognorm', and read that instead of the counts",
    )


def _add_size_factors(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--size-factors", metavar="COLUMN", help=f"for counts: column of obs with the cells' size factors ({default})"
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda' or 'cuda:1'")


def _add_results(command: argparse.ArgumentParser, n_top: str, key_added: str) -> None:
    command.add_argument("--n-top", type=int, default=10, metavar="N", help=n_top)
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the table (.csv)")
    command.add_argument("--out", type=Path, metavar="FILE", help="write the data with the result (.h5ad or .zarr)")
    command.add_argument("--key-added", default=key_added, metavar="KEY", help="key of the result in --out")
    _add_force(command)


def _add_force(command: argparse.ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="replace an input if it is named as the output too")
