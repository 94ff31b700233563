"""Both anomaly questions for counts, by blocks of cells: zeros in closed form, the rest one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..model.likelihoods import COUNTS
from .anomaly_scores import NOT_ASKED, Scores
from .explanations import Explanations

if TYPE_CHECKING:
    from torch import Tensor

    from .odd_counts import WithoutOdd


@dataclass(frozen=True)
class CountScores(Scores):
    """With the predictives' parameters, (cells, m) each."""

    rate: Tensor
    dispersion: Tensor


class CountAnomalyScan:
    """Scores of counts under their leave-one-out predictives; the distance is minus the log of the tail probability."""

    distance_max, distance_bins = 160.0, 8000

    def __init__(self, cleaned: WithoutOdd, direction: str, fdr: float) -> None:
        q = cleaned.posterior
        self._explain, self._gross = Explanations(q, cleaned.taken), cleaned.gross
        self._likelihood, self._direction, self._fdr = COUNTS[q.noise.likelihood], direction, fdr
        self.share = cleaned.share

    @staticmethod
    def tail(distance: Tensor) -> Tensor:
        """Tail probability at a distance."""
        return (-distance).exp()

    def score(self, y: Tensor, cells: slice) -> CountScores:
        """Both scores of the entries `y` (cells, m)."""
        here, others = self._explain(y, cells)
        expected, log_zero = here.mean(), here.log_zero()
        log_ratio = others.log_zero() - log_zero
        both = self._direction == "both"
        distance = torch.full_like(log_zero, NOT_ASKED) if self._direction == "up" else -log_zero
        if both:
            distance = (distance - np.log(2)).clamp_(min=0)
        at = torch.nonzero(y, as_tuple=True)
        count, law = y[at], here.at(at)
        own = law.log_density(count)
        with_gross = own if self._gross is None else self._gross.added_to(own, count, expected[at])
        log_ratio[at] = (others.at(at).log_density(count) - with_gross).float()
        distance[at] = self._distance(count, law.rate, law.dispersion, expected[at], own).to(distance)
        if not both:
            asked = y > expected if self._direction == "up" else y <= expected
            log_ratio.masked_fill_(~asked, -torch.inf)
            distance.masked_fill_(~asked, NOT_ASKED)
        return CountScores(expected, distance, log_ratio, here.rate, here.dispersion)

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
