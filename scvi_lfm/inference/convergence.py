"""When to stop: the share of the factors' gain in ELBO that is still missing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


# gains that shrink to this share of the ones before them shrink for good
CLEARLY = 0.5


def remaining_gap(values: Sequence[float], rank0: float, least_gain: float = 0.0, ahead: int = 0) -> float:
    """Estimate (L_inf - L) / (L_inf - L_rank0) from the last values of the ELBO L.

    Gains of coordinate ascent shrink about geometrically, so the last two tell what is still to come. Gains that do not
    shrink tell nothing yet, and give infinity; nor do those that shrink by less than half, unless those before them
    shrank too: factors of counts may gain little at first, and more when their scales have followed. A loss is noise of
    minibatches, and nothing can be told below its size. Where the factors gain less than `least_gain`, what is missing
    is compared with that instead: data without factors converge too. `ahead` values are still to come, whatever this
    says, and their gains are not missing.
    """
    if len(values) < 3:
        return float("inf")
    missing, shrinks = _missing(values)
    gained = max(values[-1] + missing - rank0, least_gain)
    return missing * shrinks**ahead / gained if 0 < gained < float("inf") else float("inf")


def shares_missing(values: Sequence[float], rank0: float, ahead: int = 0) -> list[float]:
    """Estimate (L_inf - L) / (L_inf - L_rank0) of every value of a fit that is over; NaN where nothing tells.

    The last value is that of the result, the others are those by which the fit was stopped. After `ahead` more values
    there is missing what they say, and the end L_inf lies that much above the highest value: the last one may lie
    below the one before it, if only it speaks of all genes.
    """
    passes = values[:-1]
    missing, shrinks = _missing(passes) if len(passes) > 2 else (float("inf"), 1.0)
    missing *= shrinks**ahead
    gained = max(values, default=0.0) + missing - rank0
    if not 0 < gained < float("inf"):
        return [float("nan")] * len(values)
    return [*((gained + rank0 - value) / gained for value in passes), missing / gained]


def _missing(values: Sequence[float]) -> tuple[float, float]:
    """What is still to come after at least three values, and the share to which gains shrink; infinity if unknown."""
    before, last = values[-2] - values[-3], values[-1] - values[-2]
    if last <= 0:
        return -last, 1.0
    if last < before and (last <= CLEARLY * before or _shrank(values[:-1])):
        return last * (last / before) / (1 - last / before), last / before
    return float("inf"), 1.0


def _shrank(values: Sequence[float]) -> bool:
    """Whether the last gain is smaller than that before it."""
    return len(values) > 2 and values[-1] - values[-2] < values[-2] - values[-3]


def values_left(values: Sequence[float], rank0: float, tol: float, least_gain: float = 0.0, ahead: int = 0) -> float:
    """Estimate how many more values it takes until the remaining gap falls below `tol`; infinity where nothing tells.

    What is missing shrinks from value to value as the gains do.
    """
    gap = remaining_gap(values, rank0, least_gain, ahead)
    if gap < tol:
        return 0.0
    if gap == float("inf") or values[-1] <= values[-2]:
        return float("inf")
    shrinks = (values[-2] - values[-3]) / (values[-1] - values[-2])
    return math.log(gap / tol) / math.log(shrinks)
