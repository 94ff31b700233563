"""How a fit went, from its first epoch to its result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .options import FitResult

if TYPE_CHECKING:
    from ..posterior import CountPosterior, NormalPosterior


@dataclass(frozen=True)
class Trace:
    """How a fit went."""

    values: list[tuple[float, float]]
    rank0: float
    converged: bool
    held_out: list[tuple[float, float, float]] = field(default_factory=list)
    stopped: bool = False  # because the log density of held-out entries fell

    @property
    def epochs(self) -> int:
        """Epochs that were made."""
        return math.ceil(self.values[-1][0]) if self.values else 0

    def result(
        self, posterior: NormalPosterior | CountPosterior, elbo: float, variance_ratio: list[float]
    ) -> FitResult:
        """The result of the fit, whose last ELBO per entry is the exact one, at the end of the last epoch."""
        end = self.values[-1][0] if self.values else 0.0
        return FitResult(posterior, [*self.values, (end, elbo)], self.rank0, variance_ratio, self.converged)
