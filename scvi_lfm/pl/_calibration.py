"""`pl.calibration`: where the predictive can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._calls import named_arguments
from ._figure import BLUE, GREY, ORANGE, SMALL, finish, many_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..tl import CheckReport

# entries below which a stratum says little
ENOUGH = 2000


@named_arguments
def calibration(report: CheckReport, *, title: str | None = None, show: bool | None = None) -> list[Axes] | None:
    """Coverage of 90 % intervals by stratum, and the distribution of all transforms.

    Left: the share of values inside, by expected value and by depth of the cell, with the range that passes. Strata
    with fewer than 2,000 entries are drawn hollow. Right: histograms of the transforms by expected value, flat where
    the predictive is right, high at both ends where it is too narrow.

    Parameters
    ----------
    report
        What :func:`scvi_lfm.tl.check` returned.
    title
        Title of the plot.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.

    Returns
    -------
    The two axes, or None if the figure was shown. What is drawn are the tables of the report.

    Raises
    ------
    TypeError
        `report` is no report.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(400, 100, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> len(lfm.pl.calibration(lfm.tl.check(adata, refit=False), show=False))
    2
    """
    from ..tl import CheckReport

    if not isinstance(report, CheckReport):
        msg = f"`report` must be what lfm.tl.check(adata) returns, found {type(report).__name__}."
        raise TypeError(msg)
    strata, bars = many_axes(2, None, size=(4.6, 3.8))
    table = report.calibration[report.calibration["n"] > 0]
    place = np.arange(len(table))[::-1]
    strata.axvspan(85, 95, color=GREY, alpha=0.15, lw=0)
    strata.axvline(90, color=GREY, lw=1)
    for y, row in zip(place, table.itertuples(), strict=True):
        colour = BLUE if row.ok else ORANGE
        strata.plot(100 * row.coverage, y, "o", color=colour, mfc=colour if row.n >= ENOUGH else "white")
    names = [
        "all" if row.by == "all" else f"{'expected' if row.by == 'expected' else 'depth'} {row.stratum}"
        for row in table.itertuples()
    ]
    strata.set_yticks(place, names, fontsize=SMALL)
    strata.set(xlabel="values inside 90 % intervals (%)", xlim=(min(70, 100 * table["coverage"].min() - 3), 101))
    _draw_transforms(bars, report)
    strata.set_title(title or "")
    return finish([strata, bars], show=show)


def _draw_transforms(axes: Axes, report: CheckReport) -> None:
    import matplotlib as mpl

    n_bins = report.histogram.shape[1]
    edges = np.linspace(0, 1, n_bins + 1)
    rows = [row for row in report.calibration.itertuples() if row.by == "expected" and row.n >= ENOUGH]
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(len(rows), 1)))
    for row, colour in zip(rows, colours, strict=False):
        axes.stairs(report.histogram[row.Index] * n_bins, edges, color=colour, lw=1.5, label=row.stratum)
    axes.axhline(1, color=GREY, lw=1)
    axes.set(xlabel="transform of the value left out", ylabel="density", xlim=(0, 1), ylim=(0, None))
    if rows:
        axes.legend(title="expected value", frameon=False, fontsize=SMALL, title_fontsize=SMALL, loc="lower center")
