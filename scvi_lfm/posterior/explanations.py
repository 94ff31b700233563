"""Two explanations of every count, by blocks of cells: its own cell, which has not seen it, and other cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.likelihoods import COUNTS
from .leave_one_out_counts import CountLeaveOneOut
from .other_cells_counts import other_cells_counts
from .predictive_counts import mixed

if TYPE_CHECKING:
    from torch import Tensor

    from .leave_many_out import TakenOut
    from .posterior import CountPosterior


@dataclass(frozen=True)
class Law:
    """Laws of counts, one of `COUNTS` each, of any shape."""

    likelihood: str
    rate: Tensor
    dispersion: Tensor

    def at(self, index: tuple[Tensor, ...]) -> Law:
        """Those of some entries."""
        return Law(self.likelihood, self.rate[index], self.dispersion[index])

    def mean(self) -> Tensor:
        """Expected values."""
        return COUNTS[self.likelihood].mean(self.rate, self.dispersion)

    def log_zero(self) -> Tensor:
        """Log probability of a zero."""
        return COUNTS[self.likelihood].log_zero(self.rate, self.dispersion)

    def log_density(self, y: Tensor) -> Tensor:
        """Log probability of counts, in float64."""
        return COUNTS[self.likelihood].log_density(y, self.rate, self.dispersion)


class Explanations:
    """The laws of counts by their own cells and by others; of counts in `taken`, the first has not seen a share."""

    def __init__(self, q: CountPosterior, taken: TakenOut | None = None) -> None:
        self._loo, self._others = CountLeaveOneOut(q, taken), other_cells_counts(q)
        self._name, self._log_size = q.noise.likelihood, q.noise.log_size

    def __call__(self, y: Tensor, cells: slice) -> tuple[Law, Law]:
        """Both for the counts `y` (cells, m)."""
        eta, fitted = self._loo.eta(y, cells)
        own = Law(self._name, *mixed(self._name, eta.mean, eta.var, self._loo.dispersion))
        size = self._log_size[cells, None].exp().float()
        average, dispersion = self._others.without(fitted / size)
        return own, Law(self._name, size * average, dispersion)
