"""What `tl.check` says in words, and the bounds that it judges by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._keys import CONVERGED, HELD_OUT
from ..posterior.store.lookup import entry

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
    """Words on what the coverage says."""
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
    """Words on what correlated residuals say, if anything."""
    if leftover <= MOST_LEFTOVER:
        return []
    return [
        f"Structure is left over: the residuals of abundant genes share a direction with {leftover:.1f} times the "
        "variance that noise gives. More factors would take it up."
    ]


def how_it_ended(uns: Mapping[str, Any], key: str) -> str:
    """Reason why a stored fit stopped: `"tol"`, `"held_out"` or `"max_epochs"`."""
    if not entry(uns, CONVERGED, key):
        return "max_epochs"
    held_out = uns.get(HELD_OUT, {})
    return "held_out" if isinstance(held_out, Mapping) and bool(held_out.get("stopped", False)) else "tol"


def on_convergence(table: pd.DataFrame, ended: str, tol: float) -> list[str]:
    """Words on the fit's own estimate and on the comparison with another fit, and which of them counts."""
    words = [_ENDED[ended].format(tol=tol)]
    if table["gap"].dropna().empty:
        return words
    mine, difference = table["gap"].iloc[0], table["eta_difference"].max()
    other = "another seed" + (" and smaller batches" if table["batch_size"].nunique() > 1 else "")
    differs = f"eta differs between them by up to {difference:.2f} posterior standard deviations (root mean square)"
    if mine <= tol:
        words.append(f"A fit with {other} ends at most {mine:.2%} of that gain above it;")
    else:
        hopeful = "the estimate was too hopeful, and " if ended == "tol" else ""
        words.append(f"A fit with {other} ends {mine:.2%} of that gain above it: {hopeful}this figure counts;")
    if difference > CLOSE:
        words.append(f"{differs}, which is far apart: pass tol={tol / 5:g}, and a larger max_epochs if it needs one.")
    elif mine > tol:
        words.append(f"{differs}, which is close: use the fit as it is, or pass tol={tol / 5:g} to come nearer.")
    else:
        words.append(f"{differs}: it has converged.")
    return words


_ENDED = {
    "tol": "The fit stopped by its own estimate, that less than {tol:.2%} of what factors gain in ELBO was missing.",
    "held_out": "The fit stopped because held-out entries were predicted worse.",
    "max_epochs": "The fit stopped at max_epochs, before its tolerance: pass a larger max_epochs.",
}
