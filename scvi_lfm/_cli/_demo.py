"""`scvi-lfm demo`: the main job on the data that ship with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scvi_lfm as lfm

from .._keys import SECONDS, VARIANCE_RATIO, fit_keys
from ._drafts import new_file, writing
from ._files import DATA
from ._messages import CommandError, say
from ._tables import as_text
from ._writing import write_new

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad
    import pandas as pd
    from matplotlib.figure import Figure

TYPE = "facs_celltype"
SHOWN = "CD56+ NK"
TITLE = "Sorted blood cells"
PLANE = (0, 2)  # factors
N_GENES, N_ENTRIES, MAX_ENTRIES = 7, 12, 1_000
MOST = 0.9

_ABOUT_DATA = """\
{n_obs:,} blood cells x {n_vars:,} genes (Zheng et al. 2017): ten types, each purified with antibodies
before sequencing. Each was a sequencing library of its own, so type and library are confounded.
"""

_ABOUT_GENES = """
TOP GENES OF EACH SORTED TYPE, by how far their log rate is above that of all other cells, best first
"""

_ABOUT_ANOMALIES = """
COUNTS THAT SHOULD NOT BE THERE: higher than expected in their cell, most telling first
"""

_COLUMNS = """
  cell        barcode and library that the cell was sorted into
  usual_in    sorted type in which the gene is highest on average, this cell left out
  y           molecules counted
  expected    number expected from everything else that is known about the cell and the gene
  q           how improbable so many are here, adjusted for looking at every cell and gene
  log_ratio   log likelihood that they came from other cells over that they came from this one
  lfdr        local false discovery rate: probability that they belong to this cell after all
"""

_DEPTH = """\
A row with a small lfdr says: this cell shows a gene that belongs to other cells. Their RNA was in the droplet, or the
cell was sorted wrongly. A small q alone says that so many molecules are odd here, wherever they came from. The cells'
total scores correlate {depth:+.2f} with the number of genes detected: far from zero, they tell deep cells from shallow
ones, so read single rows and do not choose cells by their total.
"""

_NEXT = """
Next, look at the figures, ask the fit something else, or fit your own counts (an AnnData, genes in columns):

  scvi-lfm rank {data} --groupby facs_subpop
  scvi-lfm fit your_counts.h5ad fitted.h5ad
"""


def run_demo(folder: Path) -> None:
    """Fit, rank, find anomalies; print them and write everything into `folder`."""
    _make(folder)
    path = folder / "pbmc_sorted.h5ad"
    with new_file(path, DATA) as draft:
        adata = lfm.datasets.pbmc_sorted()
        print(_ABOUT_DATA.format(n_obs=adata.n_obs, n_vars=adata.n_vars), flush=True)
        say("fitting 30 factors to the counts ...")
        lfm.tl.fit(adata, likelihood="negative_binomial")
        _print_fit(adata)
        lfm.tl.rank_genes(adata, groupby=TYPE)
        _print_genes(adata)
        say("scoring every value ...")
        lfm.tl.anomalies(adata, direction="up", max_entries=MAX_ENTRIES)
        _print_anomalies(adata)
        write_new(adata, draft)
    say("drawing ...")
    written = {path: "The data, with the fit, the ranking and the anomalies in them."}
    written |= _draw(adata, folder)
    page = folder / "explorer.html"
    lfm.pl.explorer(
        adata,
        page,
        basis=fit_keys("lfm").cell_factors,
        dimensions=PLANE,
        color=TYPE,
        title=TITLE,
        overwrite=True,
    )
    written[page] = "A page to open in a browser: select cells, and see their genes."
    _print_written(written)
    print(_NEXT.format(data=path), end="")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the folder {folder}: {error.strerror}"
        raise CommandError(msg) from error


def _print_fit(adata: ad.AnnData) -> None:
    stored = adata.uns["lfm"]
    n_most = int((stored[VARIANCE_RATIO].cumsum() < MOST).sum()) + 1
    print(f"Fitted in {stored[SECONDS]:.1f} s. {n_most} factors carry {MOST:.0%} of what separates the cells.")


def _print_genes(adata: ad.AnnData) -> None:
    table = lfm.get.rank_genes_df(adata)
    print(_ABOUT_GENES)
    for group, genes in table.groupby("group", observed=True, sort=False):
        print(f"  {group:<30}{' '.join(genes['names'].head(N_GENES))}")


def _print_anomalies(adata: ad.AnnData) -> None:
    entries = lfm.get.anomalies_df(adata)
    top = entries[["cell", "gene", "y", "expected", "q", "log_ratio", "lfdr"]].head(N_ENTRIES)
    top.insert(2, "usual_in", _usual_types(adata, top))
    print(_ABOUT_ANOMALIES)
    print(as_text(top))
    print(_COLUMNS)
    print(_DEPTH.format(depth=entries.attrs["depth_correlation"]), end="")


def _usual_types(adata: ad.AnnData, entries: pd.DataFrame) -> list[str]:
    """Type with the highest mean rate of each entry's gene, without the entry, which may be most of the mean."""
    rates = adata[:, entries["gene"].unique()].to_df().div(adata.obs[fit_keys("lfm").size_factor], axis=0)
    of_others = (rates[entry.gene].drop(entry.cell) for entry in entries.itertuples())
    return [str(rate.groupby(adata.obs[TYPE], observed=True).mean().idxmax()) for rate in of_others]


def _print_written(written: dict[Path, str]) -> None:
    """Print each file, by its path, and a sentence of what it holds."""
    print("\nWRITTEN\n")
    for path, sentence in written.items():
        print(f"  {path}\n      {sentence}")


def _draw(adata: ad.AnnData, folder: Path) -> dict[Path, str]:
    """Draw the figures into `folder`: their paths, and a sentence of what each shows."""
    import matplotlib as mpl

    mpl.use("agg")
    figures: dict[str, tuple[Any, str]] = {
        "overview.png": (_overview(adata), "Cells by two factors, genes of one type, and anomalies."),
        "rank_genes.png": (lfm.pl.rank_genes(adata, return_fig=True), "The top genes of each type, with intervals."),
        "loadings.png": (lfm.pl.loadings(adata, return_fig=True), "The genes that make up the first factors."),
        "variance.png": (lfm.pl.variance(adata, return_fig=True), "How much each factor separates the cells."),
        "elbo.png": (lfm.pl.elbo(adata, return_fig=True), "How the fit converged, epoch by epoch."),
    }
    for name, (figure, _) in figures.items():
        _save(figure, folder / name)
    return {folder / name: sentence for name, (_, sentence) in figures.items()}


def _overview(adata: ad.AnnData) -> Figure:
    import matplotlib.pyplot as plt

    figure, (cells, genes, entries) = plt.subplots(
        1, 3, figsize=(15, 4.2), width_ratios=(1, 0.8, 1.1), layout="constrained"
    )
    for axes in (cells, genes, entries):
        axes.spines[["top", "right"]].set_visible(False)
    lfm.pl.factors(adata, TYPE, factors=PLANE, title=f"{adata.n_obs:,} cells", ax=cells, show=False)
    lfm.pl.rank_genes(adata, SHOWN, title=f"genes of {SHOWN} cells", ax=genes, show=False)
    lfm.pl.anomalies(adata, title="counts that should not be there", ax=entries, show=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    with new_file(path, (".png",)) as draft, writing(draft):
        figure.savefig(draft.path, dpi=130, bbox_inches="tight")
    plt.close(figure)
