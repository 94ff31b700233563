"""How a fit went, from its first epoch to its result."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .options import FitResult

if TYPE_CHECKING:
    from ..posterior import CountPosterior, NormalPosterior


# a window of the trace: a quarter of an epoch, or so many steps, whatever is less
WINDOWS_PER_EPOCH, MOST_STEPS = 4, 2
# estimates that tell of their noise
DIFFERENCES = 5


@dataclass(frozen=True)
class Trace:
    """Trace of a fit from epoch to epoch, and how it ended."""

    values: list[tuple[float, float]]
    rank0: float
    converged: bool
    held_out: list[tuple[float, float, float]] = field(default_factory=list)
    stopped: bool = False  # because the log density of held-out entries fell

    @property
    def end(self) -> float:
        """Readings of all cells that were made."""
        return self.values[-1][0] if self.values else 0.0

    @property
    def epochs(self) -> int:
        """Epochs that were made, the last one whole or in part."""
        return math.ceil(self.end)

    def result(
        self, posterior: NormalPosterior | CountPosterior, elbo: float, variance_ratio: list[float]
    ) -> FitResult:
        """The result of the fit, whose last ELBO per entry is the exact one, at the end of the last epoch."""
        return FitResult(posterior, [*self.values, (self.end, elbo)], self.rank0, variance_ratio, self.converged)


def steps_per_window(n_steps: int) -> int:
    """Steps whose mean is a value of the trace, where an epoch has `n_steps`."""
    return min(max(n_steps // WINDOWS_PER_EPOCH, 1), MOST_STEPS)


def windows(epoch: int, values: list[float], n_steps: int) -> list[tuple[float, float]]:
    """Means over windows of an epoch of `n_steps`, of which `values` are the first, each at its end."""
    size = steps_per_window(n_steps)
    ends = [*range(size, len(values), size), len(values)]
    if len(ends) > 1 and ends[-1] - ends[-2] < size:  # the last window takes the rest
        del ends[-2]
    starts = [0, *ends[:-1]]
    means = [sum(values[start:end]) / (end - start) for start, end in zip(starts, ends, strict=True)]
    return [(epoch - 1 + end / n_steps, mean) for end, mean in zip(ends, means, strict=True)]


def noise_of(values: list[float], n_steps: int) -> float:
    """Standard error of a window's mean, from the differences of the last successive estimates.

    What the bound gains from step to step is in it too, so that it is none too small.
    """
    last = values[-DIFFERENCES:]
    if len(last) < 3:
        return math.inf
    differences = [after - before for before, after in zip(last[:-1], last[1:], strict=True)]
    return statistics.stdev(differences) / math.sqrt(2 * steps_per_window(n_steps))
