"""What the commands say of themselves: a sentence of purpose, more where it is needed, and examples that run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """How a command is called, what it is for in a line and in full, and examples of it."""

    usage: str
    summary: str
    text: str
    examples: tuple[str, ...]
    more: tuple[str, ...] = ()  # lines below the examples

    @property
    def epilog(self) -> str:
        """The examples as help shows them."""
        return "\n".join(("examples:", *(f"  {line}" for line in self.examples), *self.more))


PROGRAM = About(
    "COMMAND ...",
    "the package from a shell",
    """\
A Bayesian factor model for single-cell data: embeddings of cells and genes,
gene ranking and anomalies, all with their uncertainty.

Data are read from .h5ad or .zarr and written to .h5ad or .zarr, by suffix. An
output in the format of the input is a copy of it with the new fields in it.
Results go to standard output, messages to standard error.""",
    (
        "scvi-lfm demo",
        "scvi-lfm fit counts.h5ad fitted.h5ad",
        "scvi-lfm rank fitted.h5ad --groupby leiden --csv genes.csv",
        "scvi-lfm anomalies fitted.h5ad --direction up",
        "scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad",
        "scvi-lfm explore fitted.h5ad page.html",
        "scvi-lfm merge counts.h5ad results.h5ad fitted.h5ad",
    ),
    ("", "scvi-lfm COMMAND --help says more about each."),
)

DEMO = About(
    "[options]",
    "run everything on data that ship with the package",
    """\
Run everything on 1,200 sorted blood cells that ship with the package: fit their
counts, rank the genes of each type, find anomalies, write the data and figures.""",
    ("scvi-lfm demo", "scvi-lfm demo --out blood"),
)

FIT = About(
    "IN [OUT] [options]",
    "fit the model to counts, or to log-normalised values",
    """\
Fit the model and write the data with the embeddings of cells and genes in it.

Whole numbers are fitted as the counts that they are (negative binomial), other
values with a Normal. --normalize log-normalises counts as they are read and fits
a Normal, which is faster.""",
    (
        "scvi-lfm fit counts.h5ad --plan",
        "scvi-lfm fit counts.h5ad fitted.h5ad",
        "scvi-lfm fit data.zarr fitted.zarr --layer counts --n-factors 50",
        "scvi-lfm fit data.zarr --in-place",
        "scvi-lfm fit counts.h5ad results.h5ad --results-only",
        "scvi-lfm fit counts.h5ad fitted.h5ad --covariates batch",
        "scvi-lfm fit peaks.h5ad fitted.h5ad --likelihood bernoulli",
        "scvi-lfm fit counts.h5ad fitted.h5ad --normalize --noise gene --seed 1",
    ),
)

RANK = About(
    "IN (--groupby COLUMN | --mask COLUMN) [options]",
    "rank genes for groups of cells",
    """\
Rank genes by how well they align with groups of cells, from a stored fit.

Prints the top genes of each group: score (difference of expected values, for
counts of log rates), sd (its posterior standard deviation), lfsr (local false
sign rate) and log2 fold change (approximate for log-normalised values).""",
    (
        "scvi-lfm rank fitted.h5ad --groupby leiden",
        "scvi-lfm rank fitted.h5ad --groupby leiden --groups 3 7 --reference 1",
        "scvi-lfm rank fitted.h5ad --mask is_stimulated --csv genes.csv",
        "scvi-lfm rank fitted.h5ad --groupby leiden --rankby scores/sd",
    ),
)

ANOMALIES = About(
    "IN [options]",
    "list values that should not be there",
    """\
List cell-gene values that the model did not expect, from a stored fit.

Prints the observed and the expected value, q (adjusted tail probability),
log_ratio (log likelihood of "from other cells" over "from this cell"), lfdr
(local false discovery rate) and the direction.""",
    (
        "scvi-lfm anomalies fitted.h5ad --direction up",
        "scvi-lfm anomalies fitted.h5ad --fdr 0.01 --csv entries.csv --out scored.h5ad",
    ),
)

PROJECT = About(
    "IN REFERENCE [OUT] [options]",
    "place new cells in a fitted embedding",
    """\
Place new cells in the embedding of a fitted reference, without a refit.

Genes are matched by name. The values must be of the reference's kind: counts for
a reference fitted to counts, with --normalize or without, else normalised as those
were.""",
    (
        "scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad",
        "scvi-lfm project new_counts.h5ad fitted.h5ad placed.h5ad --layer counts",
    ),
)

EXPLORE = About(
    "IN PAGE [options]",
    "write a page in which cells are selected and their genes ranked",
    """\
Write a page that a browser opens by a double click, from a stored fit: draw a
lasso around cells, or choose a group, and see their genes.

The page is one file, needs no server and asks the network for nothing. It holds
the fit, the columns of obs with few groups and the names of cells and genes,
and no values of X.""",
    (
        "scvi-lfm explore fitted.h5ad page.html",
        "scvi-lfm explore fitted.h5ad page.html --color leiden CD3E",
        "scvi-lfm explore fitted.h5ad page.html --basis X_pca --dimensions 0 2",
    ),
)

MERGE = About(
    "DATA RESULTS [OUT] [options]",
    "put results back into their data",
    """\
Put results that were written with --results-only back into their data.

Cells and genes are matched by name. Earlier results of the same names are
replaced, and nothing else.""",
    (
        "scvi-lfm merge counts.h5ad results.h5ad fitted.h5ad",
        "scvi-lfm merge data.zarr results.h5ad --in-place",
    ),
)
