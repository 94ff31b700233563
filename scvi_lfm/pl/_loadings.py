"""`pl.loadings`: the genes that make a factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._validate import check_count
from ..get import factors_df
from ._colors import BLUE, GREY, ORANGE
from ._figure import WHISKER, describe, name_rows, row_panels
from ._output import plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot
def loadings(
    adata: AnnData,
    factors: int | Sequence[int] | None = None,
    *,
    n_genes: int = 10,
    key: str = "lfm",
    title: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Genes with the largest loadings on each factor, one panel a factor.

    Whiskers are 95 % posterior intervals (1.96 standard deviations to each side). Which end of a factor is positive is
    arbitrary.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    factors
        Factor or factors, counted from 0; None draws the first six that are on.
    n_genes
        Number of genes in a panel.
    key
        The `key_added` of the fit.
    title
        Title of the figure.
    ax
        Axes to draw on, one for each factor; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.
    save
        File to save the figure to, such as `"figure.png"`; None saves none. It is the whole path: nothing is added.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The axes of each factor; the figure with `return_fig`; None if it was shown. What is drawn is the table
    :func:`scvi_lfm.get.factors_df`.

    Raises
    ------
    KeyError
        There is no such fit.
    TypeError, ValueError
        There is no such factor, or `ax` has not one axes for each.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> len(lfm.pl.loadings(adata, [0, 2], show=False))
    2
    """
    table = factors_df(adata, factors=factors, key=key, n_genes=check_count("n_genes", n_genes))
    chosen = list(dict.fromkeys(table["factor"]))[: 6 if factors is None else None]
    if not chosen:
        msg = "There are no loadings to draw: every factor is off, or no fitted gene is left."
        raise ValueError(msg)
    tables = [table[table["factor"] == factor] for factor in chosen]
    panels = row_panels([list(each["gene"]) for each in tables], ax)
    for axes, each in zip(panels, tables, strict=True):
        _draw_factor(axes, each)
    describe(
        panels, [f"factor {factor}" for factor in chosen], "loading, with 95% posterior interval", title, own=ax is None
    )
    return panels


def _draw_factor(axes: Axes, table: pd.DataFrame) -> None:
    table = table.sort_values("loading", ascending=False)
    axes.barh(
        np.arange(len(table)),
        table["loading"],
        xerr=WHISKER * table["sd"],
        color=np.where(table["loading"] >= 0, BLUE, ORANGE),
        error_kw={"elinewidth": 1, "ecolor": "black"},
    )
    axes.axvline(0, color=GREY, linewidth=0.8)
    name_rows(axes, table["gene"])
