"""`pl.anomalies`: values that should not be there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._keys import PARAMS
from .._validate import check_choice, check_count
from ..get import anomalies_df
from ._colors import GREY, shades
from ._figure import likelihood_of, note, one_axes, shown
from ._output import plot
from ._points import label_points

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 18  # characters of a cell below its gene
_MEANINGS = {"lfdr": "local false discovery rate", "log_ratio": "log likelihood ratio\n(other cells : own cell)"}


@plot
def anomalies(
    adata: AnnData,
    *,
    cell: str | Sequence[str] | None = None,
    gene: str | Sequence[str] | None = None,
    direction: str | None = None,
    color: str = "log_ratio",
    n_labels: int = 10,
    key: str = "lfm_anomaly",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Anomalous entries: the value observed against the one expected from all other values.

    Entries above the dashed diagonal are higher than expected, entries below it lower; counts are drawn on logarithmic
    axes. The line above the plot gives their number and the correlation (Spearman's) of the cells' scores with depth:
    far from zero, the table finds shallow or deep cells.

    Parameters
    ----------
    adata
        Annotated data with a table of anomalies (:func:`scvi_lfm.tl.anomalies`).
    cell
        Draw only the entries of this cell, or of these.
    gene
        Draw only the entries of this gene, or of these.
    direction
        Draw only `"up"` or `"down"`.
    color
        Colour entries by their `"log_ratio"` or their `"lfdr"`; the darker, the more anomalous.
    n_labels
        Number of entries to name, the most anomalous first: by their gene, and where several have the same gene by
        their cell too; by their cell alone, if `gene` is one gene. A name for which there is no room is left out.
    key
        The `key_added` of the table.
    title
        Title of the plot.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.
    save
        File to save the figure to, such as `"figure.png"`; None saves none. It is the whole path: nothing is added.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The axes; the figure with `return_fig`; None if it was shown. What is drawn is the table
    :func:`scvi_lfm.get.anomalies_df`.

    Raises
    ------
    KeyError
        There is no such table, cell or gene.
    TypeError, ValueError
        An argument is none of the above.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> lfm.tl.anomalies(adata)
    >>> axes = lfm.pl.anomalies(adata, show=False)
    """
    check_choice("color", color, tuple(_MEANINGS))
    n_labels = check_count("n_labels", n_labels, minimum=0)
    table = anomalies_df(adata, key=key, cell=cell, gene=gene, direction=direction)
    axes = one_axes(ax, size=(5.6, 4.4))
    counts = likelihood_of(adata, adata.uns[key][PARAMS].get("key", "lfm")).has_rate
    what = "count" if counts else "value"
    axes.set(xlabel=f"expected {what}", ylabel=f"observed {what}")
    axes.set_title(title or "")
    depth = table.attrs["depth_correlation"]
    correlation = f"; correlation of cells' scores with depth {depth:.2f}" if np.isfinite(depth) else ""
    note(axes, f"{len(table):,} entries{correlation}")
    if table.empty:
        axes.text(0.5, 0.5, "no anomalous entries", transform=axes.transAxes, ha="center", color=GREY)
        return axes
    if counts:
        _scale_for_counts(axes, table)
    _draw_entries(axes, table, color)
    top = table.head(n_labels)
    names = [shown(name) for name in top["cell"]] if isinstance(gene, str) else _names(top)
    label_points(axes, top[["expected", "y"]].to_numpy(), names)
    return axes


def _names(table: pd.DataFrame) -> list[str]:
    """The gene of each entry, and below it the cell where others have the same gene."""
    repeated = table["gene"].duplicated(keep=False)
    genes, cells = table["gene"].map(shown), table["cell"].map(partial(shown, longest=CELL))
    cells = cells.where(~pd.DataFrame({"gene": genes, "cell": cells}).duplicated(keep=False), table["cell"])
    return list(genes.where(~repeated, genes + "\n" + cells))


def _scale_for_counts(axes: Axes, table: pd.DataFrame) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    if (table["y"] > 0).all():
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_locator(FixedLocator([0, *(digit * 10.0**power for power in range(8) for digit in (1, 2, 5))]))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_entries(axes: Axes, table: pd.DataFrame, color: str) -> None:
    # the most anomalous come first in the table, and are drawn last
    rows = table.iloc[::-1]
    top = 1.0 if color == "lfdr" else max(float(rows[color].quantile(0.99)), 1.0)
    points = axes.scatter(
        rows["expected"],
        rows["y"],
        c=rows[color],
        cmap=shades(reverse=color == "lfdr"),
        vmin=0,
        vmax=top,
        s=float(np.clip(30_000 / len(rows), 3, 18)),
        linewidths=0,
        rasterized=len(rows) > 5_000,
    )
    if axes.get_xscale() == "log":
        axes.axline((1, 1), (2, 2), color=GREY, linestyle="--", linewidth=1, zorder=0)
    else:
        start = rows["expected"].iloc[0]  # values may lie around any level
        axes.axline((start, start), slope=1, color=GREY, linestyle="--", linewidth=1, zorder=0)
    # negative ratios, of entries that were listed for their tail alone, share the lightest colour
    extend = "neither" if color == "lfdr" else "both"
    axes.figure.colorbar(points, ax=axes, label=_MEANINGS[color], aspect=30, extend=extend)
