"""`pl.rank_genes`: the genes that belong to a group of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._keys import PARAMS
from .._validate import as_list, check_count
from ..get import rank_genes_df
from ._colors import BLUE, GREY
from ._figure import WHISKER, describe, likelihood_of, name_rows, row_panels, shown
from ._output import plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot
def rank_genes(
    adata: AnnData,
    groups: str | Sequence[str] | None = None,
    *,
    n_genes: int = 10,
    key: str = "rank_genes_lfm",
    title: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """First genes of each group of cells, one panel a group.

    They are those with the highest scores unless the ranking was ordered otherwise (`rankby`).

    Whiskers are 95 % posterior intervals (1.96 standard deviations to each side). They speak about these cells, not
    about the donors they came from. :func:`scanpy.pl.rank_genes_groups` draws the same ranking without them.

    Parameters
    ----------
    adata
        Annotated data with a ranking (:func:`scvi_lfm.tl.rank_genes`).
    groups
        Group or groups to draw; None draws all.
    n_genes
        Number of genes in a panel.
    key
        The `key_added` of the ranking.
    title
        Title of the figure.
    ax
        Axes to draw on, one for each group; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.
    save
        File to save the figure to, such as `"figure.png"`; None saves none. It is the whole path: nothing is added.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The axes of each group; the figure with `return_fig`; None if it was shown. What is drawn is the table
    :func:`scvi_lfm.get.rank_genes_df`.

    Raises
    ------
    KeyError
        There is no such ranking or group.
    TypeError, ValueError
        `n_genes` is no number of genes, or `ax` has not one axes for each group.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> lfm.tl.rank_genes(adata, mask_obs=adata.obsm["X_lfm"][:, 0] > 0)
    >>> axes = lfm.pl.rank_genes(adata, show=False)
    """
    n_genes = check_count("n_genes", n_genes)
    ranked = rank_genes_df(adata, groups, key=key)
    if groups is not None and "group" not in ranked:
        ranked = ranked.assign(group=as_list("groups", groups)[0])
    tables = {str(group): table.head(n_genes) for group, table in ranked.groupby("group", observed=False)}
    params = adata.uns[key][PARAMS]
    reference = params.get("reference", "average")
    others = {"rest": "the other cells", "average": "the average cell"}.get(reference, shown(reference))
    panels = row_panels([list(table["names"]) for table in tables.values()], ax)
    for axes, table in zip(panels, tables.values(), strict=True):
        _draw_group(axes, table)
    likelihood = likelihood_of(adata, params.get("key", "lfm"))
    what = "log rate" if likelihood.has_rate else "eta" if likelihood.has_levels else "expected expression"
    xlabel = f"score: difference in {what}\nfrom {others}, with 95% posterior interval"
    if params.get("rankby", "scores") != "scores":
        xlabel += f"\nin the order of {params['rankby']}"
    describe(panels, list(tables), xlabel, title, own=ax is None)
    return panels


def _draw_group(axes: Axes, table: pd.DataFrame) -> None:
    axes.errorbar(
        table["scores"].to_numpy(),
        np.arange(len(table)),
        xerr=WHISKER * table["sd"].to_numpy(),
        fmt="o",
        color=BLUE,
        markersize=4,
        elinewidth=1,
    )
    axes.axvline(0, color=GREY, linewidth=0.8)
    name_rows(axes, table["names"])
