"""`pl.calibration`: where the predictive can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._colors import BLUE, GREY, ORANGE, steps
from ._figure import SMALL, WIDTH, many_axes, note
from ._output import plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..tl import CheckReport

# Kolmogorov-Smirnov distance; fits of counts to counts have less than half of it, of the Normal to them several times
FAR_FROM_UNIFORM = 0.1


@plot
def calibration(
    report: CheckReport,
    *,
    title: str | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Coverage of 90 % intervals by stratum, and the distribution of all transforms, with the verdict in words.

    Above: the share of values inside, by expected value and by depth of the cell, with the range that passes. Strata
    that do not pass are orange; those with fewer than 2,000 entries say little, and are hollow. Below: histograms of
    the transforms by expected value, flat at 1 where the predictive is right, high at both ends where it is too narrow
    and in the middle where it is too wide. Intervals may hold their share by luck; the words then say
    how far from uniform the transforms are (Kolmogorov-Smirnov distance).

    Parameters
    ----------
    report
        What :func:`scvi_lfm.tl.check` returned.
    title
        Title of the plot.
    ax
        Two axes to draw on; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.
    save
        File to save the figure to, such as `"figure.png"`; None saves none. It is the whole path: nothing is added.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The two axes; the figure with `return_fig`; None if it was shown. What is drawn are the tables of the report.

    Raises
    ------
    TypeError, ValueError
        `report` is no report, or `ax` is not two axes.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(400, 100, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> len(lfm.pl.calibration(lfm.tl.check(adata, refit=False), show=False))
    2
    """
    from ..tl import CheckReport  # torch comes with it
    from ..tl._check_words import ENOUGH, STRATUM

    if not isinstance(report, CheckReport):
        msg = f"`report` must be what lfm.tl.check(adata) returns, found {type(report).__name__}."
        raise TypeError(msg)
    strata, bars = many_axes(2, ax, size=(WIDTH, 2.8), n_cols=1)
    table = report.calibration[report.calibration["n"] > 0]
    place = np.arange(len(table))[::-1]
    low, high = (100 * bound for bound in STRATUM)
    strata.axvspan(low, high, color=GREY, alpha=0.15, lw=0)
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
    passed, lines = verdict(report)
    note(strata, *lines, color=BLUE if passed else ORANGE)
    return [strata, bars]


def verdict(report: CheckReport) -> tuple[bool, list[str]]:
    """Whether predictions can be trusted, and why in a few short lines."""
    from ..tl._check_words import ENOUGH, MOST_LEFTOVER, STRATUM

    table = report.calibration
    overall = table.iloc[0]
    parts = table[(table["n"] >= ENOUGH) & (table["by"] != "all")]
    low, high = STRATUM
    wide, narrow = int((parts["coverage"] > high).sum()), int((parts["coverage"] < low).sum())
    passed = bool(overall["ok"]) and bool(parts["ok"].all())
    lines = [
        f"{'Predictions can be trusted' if passed else 'Predictions cannot be trusted everywhere'}: "
        f"{overall['coverage']:.1%} of all values lie inside"
    ]
    found = [f"too wide in {wide}"] * (wide > 0) + [f"too narrow in {narrow}"] * (narrow > 0)
    if found:
        lines.append(f"Intervals are {' and '.join(found)} of {len(parts)} strata")
    elif len(parts):
        lines.append(f"{parts['coverage'].min():.1%} to {parts['coverage'].max():.1%} in every stratum")
    shape = float(parts["ks"].max()) if len(parts) else 0.0
    if shape > FAR_FROM_UNIFORM:
        lines.append(f"Their shape is wrong all the same: transforms are up to {shape:.2f} from uniform")
    if report.leftover > MOST_LEFTOVER:
        lines.append(f"Structure is left over ({report.leftover:.1f} times the noise): more factors would take it up")
    return passed and report.leftover <= MOST_LEFTOVER and shape <= FAR_FROM_UNIFORM, lines


def _draw_transforms(axes: Axes, report: CheckReport) -> None:
    from ..tl._check_words import ENOUGH

    n_bins = report.histogram.shape[1]
    edges = np.linspace(0, 1, n_bins + 1)
    rows = [row for row in report.calibration.itertuples() if row.by == "expected" and row.n >= ENOUGH]
    axes.axhline(1, color=GREY, lw=1)
    for row, colour in zip(rows, steps(len(rows)), strict=True):
        density = report.histogram[row.Index] * n_bins
        axes.stairs(density, edges, baseline=None, color=colour, lw=1.5, label=row.stratum)
    axes.set(xlabel="transform of the value left out", ylabel="density", xlim=(0, 1), ylim=(0, None))
    if rows:
        style = {"frameon": False, "fontsize": SMALL, "title_fontsize": SMALL, "bbox_to_anchor": (1, 0.5)}
        axes.legend(title="expected value", loc="center left", **style)
