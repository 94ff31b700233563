"""`pl.variance`: how much each factor explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..get import variance_df
from ._colors import BLUE, ORANGE
from ._figure import SMALL, likelihood_of, note, one_axes
from ._output import plot

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot
def variance(
    adata: AnnData,
    *,
    key: str = "lfm",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Share of each factor in the variance of all factors (bars), and of all factors up to it (line).

    What is shared out is the variance over cells of what the factors add to the expected value: of the values under the
    Normal, of log rates for counts, of eta otherwise. So the bars add up to 100 % and mean the same under every
    likelihood. Under the Normal a second axis gives the share of all variance of the values around their genes' means,
    as :func:`scanpy.pl.pca_variance_ratio` does; of counts and other values no such share is defined. Factors that the
    data did not need are off, and have no bar.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
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
    :func:`scvi_lfm.get.variance_df`.

    Raises
    ------
    KeyError
        There is no such fit.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> len(lfm.pl.variance(adata, show=False).patches)
    3
    """
    table = variance_df(adata, key=key)
    axes = one_axes(ax)
    axes.bar(table["factor"], 100 * table["share"], color=BLUE, label="each factor")
    size = 3 if len(table) <= 30 else 0
    total = 100 * table["share"].cumsum()
    axes.plot(table["factor"], total, color=ORANGE, marker="o", markersize=size, label="cumulative")
    axes.set(xlabel="factor", ylabel="share of the factors' variance (%)", title=title or "")
    axes.locator_params(axis="x", integer=True)
    axes.set(xlim=(-0.8, len(table) - 0.2), ylim=(0, 105))
    axes.legend(frameon=False, fontsize=SMALL, loc="center right")
    whole = float(table["variance_ratio"].sum())
    if likelihood_of(adata, key).linear and whole > 0:
        note(axes, f"all factors: {whole:.1%} of the variance of the values")
        of_all = (lambda share: np.asarray(share) * whole, lambda explained: np.asarray(explained) / whole)
        right = axes.secondary_yaxis("right", functions=of_all)
        right.set_ylabel("share of all variance (%)")
    return axes
