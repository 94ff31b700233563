"""`pl.rank`: how many factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..get import rank_df
from ._colors import BLUE, GREY, ORANGE
from ._figure import SMALL, one_axes
from ._output import plot

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot
def rank(
    adata: AnnData,
    *,
    key: str = "lfm",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Evidence lower bound (ELBO) by number of factors (left axis), and how many of them are effective (right axis).

    A fit with `n_factors="auto"` takes the number where the bound is highest, less last factors of counts that add no
    more than the error of the estimate. It is marked. Beyond it the bound is that of earlier fits with more factors,
    which had not settled.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`) whose `n_factors` was `"auto"`.
    key
        The `key_added` of the fit.
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
    :func:`scvi_lfm.get.rank_df`.

    Raises
    ------
    KeyError
        There is no such fit, or its number of factors was not chosen but given.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 100, 3)
    >>> lfm.tl.fit(adata, "auto", progress=False)
    >>> lfm.pl.rank(adata, show=False).get_xlabel()
    'number of factors'
    """
    table = rank_df(adata, key=key)
    axes = one_axes(ax)
    axes.plot(table["n_factors"], table["elbo"], color=BLUE, marker="o", markersize=4)
    axes.set(xlabel="number of factors", title=title or "")
    axes.set_ylabel("ELBO per entry", color=BLUE)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.locator_params(axis="x", integer=True)
    chosen = table.loc[table["chosen"], "n_factors"].item()
    late = chosen > table["n_factors"].max() / 2
    axes.axvline(chosen, color=GREY, linestyle="--", linewidth=1, zorder=0)
    axes.annotate(
        f"{chosen} chosen",
        (chosen, 0.03),
        (-4 if late else 4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if late else "left",
        color=GREY,
        fontsize=SMALL,
    )
    right = axes.twinx()
    right.plot(table["n_factors"], table["effective"], color=ORANGE, linewidth=1)
    right.set_ylabel("effective number of factors", color=ORANGE)
    right.set_ylim(0, None)
    right.spines["top"].set_visible(False)
    return axes
