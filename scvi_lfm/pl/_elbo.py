"""`pl.elbo`: did the fit settle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._calls import named_arguments
from ..get import elbo_df
from ._figure import BLUE, GREY, SMALL, finish, one_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes


@named_arguments
def elbo(
    adata: AnnData, *, key: str = "lfm", title: str | None = None, ax: Axes | None = None, show: bool | None = None
) -> Axes | None:
    """Evidence lower bound (ELBO) in the course of the fit.

    The axis on the right gives the same as a share of what the factors gained in all: the fit stops when the share that
    is estimated to be missing falls below `tol`. The bound of the model without factors is drawn where it does not
    squeeze the curve, and written otherwise.

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
    The axes, or None if the figure was shown. What is drawn is the table :func:`scvi_lfm.get.elbo_df`.

    Raises
    ------
    KeyError
        There is no such fit.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> lfm.pl.elbo(adata, show=False).get_ylabel()
    'ELBO per entry'
    """
    table = elbo_df(adata, key=key)
    axes = one_axes(ax)
    axes.plot(table["epoch"], table["value"], color=BLUE, marker="o" if len(table) <= 50 else "", markersize=4)
    axes.set(xlabel="epoch", ylabel="ELBO per entry", title=title or "")
    axes.locator_params(axis="x", integer=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    _draw_rank0(axes, table)
    if table["share"].notna().any():
        _add_shares(axes, table)
    return finish(axes, show=show)


def _draw_rank0(axes: Axes, table: pd.DataFrame) -> None:
    rank0 = float((table["value"] - table["gain"]).iloc[0])
    if not np.isfinite(rank0):
        return
    lowest, highest = min(table["value"].min(), rank0), max(table["value"].max(), rank0)
    note: dict[str, Any] = {"color": GREY, "fontsize": SMALL, "ha": "right"}
    if table["value"].max() - table["value"].min() >= 0.1 * (highest - lowest):
        axes.axhline(rank0, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            "without factors",
            (1, rank0),
            (-3, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="bottom",
            **note,
        )
    else:
        axes.text(0.98, 0.04, f"without factors: {rank0:.4g}", transform=axes.transAxes, va="bottom", **note)


def _add_shares(axes: Axes, table: pd.DataFrame) -> None:
    last = table.iloc[-1]
    rank0, gain = last["value"] - last["gain"], last["gain"]
    right = axes.secondary_yaxis(
        "right",
        functions=(lambda value: 100 * (value - rank0) / gain, lambda share: rank0 + gain * share / 100),
    )
    right.set_ylabel("share of the factors' gain (%)")
    right.ticklabel_format(axis="y", useOffset=False)
