"""`pl.variance`: how much each factor explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._calls import named_arguments
from ..get import variance_df
from ._figure import BLUE, ORANGE, finish, likelihood_of, one_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@named_arguments
def variance(
    adata: AnnData, *, key: str = "lfm", title: str | None = None, ax: Axes | None = None, show: bool | None = None
) -> Axes | None:
    """Variance explained by each factor (bars), and by all factors up to it (line).

    For counts these are shares of the factors' own variance. Factors that the data did not need are off, and have no
    bar.

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

    Returns
    -------
    The axes, or None if the figure was shown. What is drawn is the table :func:`scvi_lfm.get.variance_df`.

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
    axes.bar(table["factor"], 100 * table["variance_ratio"], color=BLUE, label="each factor")
    axes.plot(table["factor"], 100 * table["cumulative"], color=ORANGE, marker="o", markersize=3, label="cumulative")
    linear = likelihood_of(adata, key).linear
    ylabel = "variance explained (%)" if linear else "share of the factors' variance (%)"
    axes.set(xlabel="factor", ylabel=ylabel, title=title or "")
    axes.locator_params(axis="x", integer=True)
    axes.set(xlim=(-0.8, len(table) - 0.2), ylim=(0, None))
    axes.legend(frameon=False)
    return finish(axes, show=show)
