"""Scores of entries under the two anomaly questions, and the levels at which they pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from ...model.likelihoods import Law

# a distance that stands for "not asked about"
NOT_ASKED = -1.0


@dataclass(frozen=True)
class Scores:
    """Scores of a block of entries, (cells, m)."""

    expected: Tensor  # mean of the predictive
    distance: Tensor  # standardised, in the direction asked for; negative: not of that direction
    log_ratio: Tensor  # log p(y | other cells) - log p(y | own); -inf: not of that direction
    own: Law  # of the entries by their own cells

    def at(self, observed: Tensor | None) -> Self:
        """The scores with none for entries that were not observed."""
        if observed is None:
            return self
        return replace(
            self,
            distance=self.distance.masked_fill(~observed, NOT_ASKED),
            log_ratio=self.log_ratio.masked_fill(~observed, -torch.inf),
        )


@dataclass(frozen=True)
class Thresholds:
    """What the histograms of all entries say."""

    share: float
    min_distance: float  # Benjamini-Hochberg at the level asked for; inf: nothing passes
    min_log_ratio: float  # local false discovery rate at that level
    q_values: Tensor  # (bins,): q at the lower edge of each bin of distance
    distance_max: float
    n_by_tail: int
    n_by_ratio: int

    def q_of(self, distance: Tensor) -> Tensor:
        """Benjamini-Hochberg q-values of entries at some distances."""
        n_bins = len(self.q_values)
        bins = (distance * (n_bins / self.distance_max)).long().clamp(0, n_bins - 1)
        return self.q_values[bins]

    def passed(self, scores: Scores, by: str) -> Tensor:
        """Whether entries pass by their `"lfdr"`, by their `"q"`, or by `"either"`."""
        ratio, distance = scores.log_ratio >= self.min_log_ratio, scores.distance >= self.min_distance
        return {"lfdr": ratio, "q": distance, "either": ratio | distance}[by]
