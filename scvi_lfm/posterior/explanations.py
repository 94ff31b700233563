"""Two explanations of every count, by blocks of cells: its own cell, which has not seen it, and other cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .leave_one_out_counts import CountLeaveOneOut
from .other_cells_counts import other_cells_counts
from .predictive_counts import CountPredictive, mixed

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import CountPosterior
    from .shares_left_out import SharesLeftOut


class Explanations:
    """The laws of counts by their own cells and by others; of counts in `taken`, the first has not seen a share."""

    def __init__(self, q: CountPosterior, taken: SharesLeftOut | None = None) -> None:
        self._loo, self._others = CountLeaveOneOut(q, taken), other_cells_counts(q)
        self._name, self._log_size = q.noise.likelihood, q.noise.log_size

    def __call__(self, y: Tensor, cells: slice) -> tuple[CountPredictive, CountPredictive]:
        """Both for the counts `y` (cells, m)."""
        eta, fitted = self._loo.eta(y, cells)
        own = CountPredictive(self._name, *mixed(self._name, eta.mean, eta.var, self._loo.dispersion))
        size = self._log_size[cells, None].exp().float()
        average, dispersion = self._others.without(fitted / size)
        return own, CountPredictive(self._name, size * average, dispersion)
