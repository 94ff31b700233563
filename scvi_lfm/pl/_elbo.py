"""`pl.elbo`: did the fit settle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._keys import PARAMS
from ..get import elbo_df
from ._colors import BLUE, GREY, ORANGE
from ._figure import SMALL, note, one_axes
from ._output import plot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 1e-6  # share at which the axis ends: nothing smaller can be told from none


@plot
def elbo(
    adata: AnnData,
    *,
    key: str = "lfm",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Did the fit settle: the share of the factors' gain in ELBO that was still missing after each epoch.

    The gain is the evidence lower bound (ELBO) minus that of the model without factors. Where it would end is estimated
    from the last gains, as :func:`scvi_lfm.get.elbo_df` says; the fit stops when the share that is missing is expected
    to fall below `tol`, the dashed line. The last point, a diamond, is the result: what was missing after the last pass
    over all cells, which follows the last epoch. The lines above say how the fit ended, and give the bounds.

    Factors are called weak where they gain less than a nat for each of their latents: what is missing was compared with
    that instead, so that the fit may end above the dashed line. Where nothing tells how much is missing
    (`engine="pyro"`, too few epochs, gains that do not shrink, factors that gain nothing), the bound itself is drawn.

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
    :func:`scvi_lfm.get.elbo_df`.

    Raises
    ------
    KeyError
        There is no such fit.
    TypeError, ValueError
        `ax`, `show`, `save` or `return_fig` is none of the above.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> lfm.pl.elbo(adata, show=False).get_ylabel()
    'share of the gain still missing (%)'
    """
    table = elbo_df(adata, key=key)
    fit = adata.uns[key]
    axes = one_axes(ax)
    axes.set(xlabel="epoch", title=title or "")
    known = bool(table["missing"].notna().all())
    if known:
        _draw_missing(axes, table, float(fit.get(PARAMS, {}).get("tol", np.nan)))
    else:
        _draw_value(axes, table)
    axes.locator_params(axis="x", integer=True)
    settled, verdict = _verdict(fit, key, table["missing"].iloc[-1])
    last = table.iloc[-1]
    without = last["value"] - last["gain"]
    bounds = f"ELBO per entry {last['value']:.5g}" + (
        f"; without factors {without:.5g}" if np.isfinite(without) else ""
    )
    note(axes, verdict, bounds, color=BLUE if settled else ORANGE)
    return axes


def _draw_missing(axes: Axes, table: pd.DataFrame, tol: float) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    epochs, share = table["epoch"].to_numpy(), 100 * table["missing"].clip(lower=LEAST).to_numpy()
    axes.plot(epochs[:-1], share[:-1], label="after an epoch", **_line(table))
    axes.plot(epochs[-2:], share[-2:], color=BLUE, linestyle=":", linewidth=1)
    axes.plot(epochs[-1:], share[-1:], color=BLUE, linestyle="", marker="D", label="after the last pass")
    if np.isfinite(tol):
        axes.axhline(100 * tol, color=GREY, linestyle="--", linewidth=1, label=f"tol = {_percent(tol)}")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.6g}")
    axes.set_ylabel("share of the gain still missing (%)")
    axes.legend(frameon=False, fontsize=SMALL, loc="best")


def _draw_value(axes: Axes, table: pd.DataFrame) -> None:
    before, last = table.iloc[:-1], table.iloc[-1:]
    axes.plot(before["epoch"], before["value"], label="after an epoch", **_line(table))
    axes.plot(last["epoch"], last["value"], color=BLUE, linestyle="", marker="D", label="after the last pass")
    without = float((table["value"] - table["gain"]).iloc[0])
    if np.isfinite(without):
        axes.axhline(without, color=GREY, linestyle="--", linewidth=1, label="without factors")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylabel("ELBO per entry")
    axes.legend(frameon=False, fontsize=SMALL, loc="best")


def _line(table: pd.DataFrame) -> dict[str, Any]:
    return {"color": BLUE, "marker": "o" if len(table) <= 50 else "", "markersize": 4}


def _verdict(fit: Mapping[str, Any], key: str, missing: float) -> tuple[bool, str]:
    """Whether the fit settled, and how it ended in words."""
    from ..tl._check_words import how_it_ended

    params = fit.get(PARAMS, {})
    ended, tol = how_it_ended(fit, key), float(params.get("tol", np.nan))
    left = f": about {_percent(missing)} of the gain missing" if np.isfinite(missing) else ""
    if ended == "held_out":
        return True, f"Stopped, as held-out entries were predicted worse{left}"
    if ended == "max_epochs":
        return False, f"Not settled, stopped by max_epochs{left}"
    if params.get("engine") == "pyro":
        return True, "Settled: the learning rate came to its end"
    if not np.isfinite(missing):
        return True, "Settled: the factors gain nothing"
    # of factors that gain less than a nat for each latent, what is missing was compared with that instead
    return True, f"Settled{'' if missing < tol else ' (weak factors)'}{left}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share >= 10 * LEAST else "less than 0.001%"
