"""What `tl.check` says in words, and the bounds that it judges by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

# what coverage of 90 % intervals passes, overall and in a stratum with enough entries
OVERALL, STRATUM, ENOUGH = (0.88, 0.92), (0.85, 0.95), 2000
# fits that differ by less than this, in posterior standard deviations of eta, are close
CLOSE = 0.3
MOST_LEFTOVER = 1.5


def edge_names(edges: Sequence[float], level: float) -> list[str]:
    """Expected values between strata in words, with three digits of what they are beside a level of the values."""
    digits = 3
    if level:
        digits += max(0, math.ceil(math.log10(abs(level) / max(map(abs, edges)))))
    return [f"{edge + level:.{digits}g}" for edge in edges]


def on_calibration(table: pd.DataFrame) -> list[str]:
    """What the coverage says."""
    overall = table.iloc[0]
    enough = table[(table["n"] >= ENOUGH) & (table["by"] != "all")]
    words = [f"90 % intervals hold {overall['coverage']:.1%} of the values, each predicted without itself."]
    bad = enough[~enough["ok"]]
    if overall["ok"] and bad.empty:
        low, high = (enough["coverage"].min(), enough["coverage"].max()) if len(enough) else (np.nan, np.nan)
        spread = f" (between {low:.1%} and {high:.1%} by expected value and by depth)" if len(enough) else ""
        words.append(f"The predictive can be trusted{spread}, but not far out in its tails, which are too thin.")
        return words
    where = ", ".join(
        f"{'expected value' if row.by == 'expected' else 'depth'} {row.stratum} ({row.coverage:.1%})"
        for row in bad.itertuples()
    )
    words.append(f"The predictive cannot be trusted where: {where}." if where else "The predictive cannot be trusted.")
    return words


def on_leftover(leftover: float) -> list[str]:
    """What correlated residuals say, if anything."""
    if leftover <= MOST_LEFTOVER:
        return []
    return [
        f"Structure is left over: the residuals of abundant genes share a direction with {leftover:.1f} times the "
        "variance that noise gives. More factors would take it up."
    ]


def on_convergence(table: pd.DataFrame, converged: bool) -> list[str]:  # noqa: FBT001
    """What the comparison with other fits says."""
    words = [
        "The fit stopped by its tolerance." if converged else "The fit stopped at max_epochs before its tolerance."
    ]
    gaps = table["gap"].dropna()
    if gaps.empty:
        return words
    mine, largest = gaps.iloc[0], table["eta_difference"].max()
    verdict = "close to" if largest <= CLOSE else "apart from"
    words.append(
        f"Fits with another seed and with smaller batches end {verdict} each other: this one misses {mine:.2%} of what "
        f"factors gain beside the best of them, and eta differs by up to {largest:.2f} posterior "
        "standard deviations (root mean square)."
    )
    if largest > CLOSE:
        words.append("Pass a smaller tol or a larger max_epochs.")
    return words
