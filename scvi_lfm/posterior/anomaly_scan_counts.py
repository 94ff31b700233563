"""Both anomaly questions for counts, by blocks of cells: zeros in closed form, the rest one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..model.likelihoods import COUNTS
from .anomaly_scan import NOT_ASKED, Scores
from .gross_errors import or_gross_error
from .leave_one_out_counts import CountLeaveOneOut
from .other_cells_counts import other_cells_counts
from .predictive_counts import mixed

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import CountPosterior


@dataclass(frozen=True)
class CountScores(Scores):
    """With the predictives' parameters, (cells, m) each."""

    rate: Tensor
    dispersion: Tensor


class CountAnomalyScan:
    """Scores of counts under their leave-one-out predictives; the distance is minus the log of the tail probability."""

    distance_max, distance_bins = 160.0, 8000

    def __init__(self, q: CountPosterior, direction: str, fdr: float) -> None:
        self._loo, self._name = CountLeaveOneOut(q), q.noise.likelihood
        self._likelihood = COUNTS[self._name]
        self._log_size, self._direction, self._fdr = q.noise.log_size, direction, fdr
        self._others = other_cells_counts(q)

    @staticmethod
    def tail(distance: Tensor) -> Tensor:
        """Tail probability at a distance."""
        return (-distance).exp()

    def score(self, y: Tensor, cells: slice) -> CountScores:
        """Both scores of the entries `y` (cells, m)."""
        eta, fitted = self._loo.eta(y, cells)
        rate, dispersion = mixed(self._name, eta.mean, eta.var, self._loo.dispersion)
        expected = self._likelihood.mean(rate, dispersion)
        size = self._log_size[cells, None].exp().float()
        average, others_dispersion = self._others.without(fitted / size)
        others = size * average
        log_zero = self._likelihood.log_zero(rate, dispersion)
        log_ratio = self._likelihood.log_zero(others, others_dispersion) - log_zero
        both = self._direction == "both"
        distance = torch.full_like(log_zero, NOT_ASKED) if self._direction == "up" else -log_zero
        if both:
            distance = (distance - np.log(2)).clamp_(min=0)
        at = torch.nonzero(y, as_tuple=True)
        count, at_rate, at_dispersion = y[at], rate[at], dispersion[at]
        own = self._likelihood.log_density(count, at_rate, at_dispersion)
        other = self._likelihood.log_density(count, others[at], others_dispersion[at])
        log_ratio[at] = (other - or_gross_error(self._name, own, count, at_rate)).float()
        distance[at] = self._distance(count, at_rate, at_dispersion, expected[at], own).to(distance)
        if not both:
            asked = y > expected if self._direction == "up" else y <= expected
            log_ratio.masked_fill_(~asked, -torch.inf)
            distance.masked_fill_(~asked, NOT_ASKED)
        return CountScores(expected, distance, log_ratio, rate, dispersion)

    def _distance(self, y: Tensor, rate: Tensor, dispersion: Tensor, expected: Tensor, own: Tensor) -> Tensor:
        """Minus the log tail probability of counts above zero.

        Where the probability of the count alone is above the level asked for, that stands in: such entries never pass.
        """
        distance = -own
        rare = torch.nonzero(own < np.log(self._fdr))[:, 0]
        above = (y > expected)[rare].cpu().numpy()
        values, rates, phi = (part[rare].double().cpu().numpy() for part in (y, rate, dispersion))
        tail = np.empty(len(values))
        for side, of in ((above, self._likelihood.upper_tail), (~above, self._likelihood.lower_tail)):
            tail[side] = of(values[side], rates[side], phi[side])
        exact = -np.log(np.maximum(tail, 1e-300))
        distance[rare] = torch.from_numpy(exact).to(distance)
        return (distance - np.log(2)).clamp(min=0) if self._direction == "both" else distance

    def p_of(self, y: Tensor, scores: Scores, at: tuple[Tensor, Tensor]) -> Tensor:
        """Tail probabilities of some entries: half the probability of the count itself is left out."""
        scores = cast("CountScores", scores)
        values, rate, phi = y[at], scores.rate[at], scores.dispersion[at]
        arrays = tuple(part.double().cpu().numpy() for part in (values, rate, phi))
        above = (values > scores.expected[at]).cpu().numpy()
        tail = np.where(above, self._likelihood.upper_tail(*arrays), self._likelihood.lower_tail(*arrays))
        itself = self._likelihood.log_density(values, rate, phi).exp().cpu().numpy()
        sides = 2 if self._direction == "both" else 1
        return torch.from_numpy(np.minimum(sides * (tail - itself / 2), 1.0))
