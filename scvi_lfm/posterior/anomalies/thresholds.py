"""Scores of entries under the two anomaly questions, and the distances at which they pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
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
class Distances:
    """Numbers of entries by their distance, which say at which an entry passes (Benjamini & Hochberg).

    Of `total` entries, `n_left` have not been counted yet.
    """

    counts: Tensor  # (bins,)
    largest: float  # distance at the end of the last bin, which holds all beyond
    tail: Callable[[Tensor], Tensor]  # probability of a distance and those beyond it
    total: int
    n_left: int

    def _edges(self) -> Tensor:
        edges = torch.arange(len(self.counts), dtype=torch.float64, device=self.counts.device)
        return edges * (self.largest / len(self.counts))

    def _beyond(self) -> Tensor:
        return self.counts.flip(0).cumsum(0).flip(0)

    def q_of(self, distance: Tensor) -> Tensor:
        """q of entries at some distances, once all were counted."""
        beyond, n_bins = self._beyond(), len(self.counts)
        raw = torch.where(beyond > 0, self.total * self.tail(self._edges()) / beyond.clamp_min(1), 1.0)
        place = (distance.double() * (n_bins / self.largest)).long().clamp(0, n_bins - 1)
        return raw.cummin(0).values.clamp(max=1)[place]

    def least(self, fdr: float, *, certain: bool = True) -> float:
        """The distance from which on entries pass whatever those are that were not counted yet; infinity: none does.

        Not `certain`: from which on they may pass.
        """
        beyond = self._beyond() if certain else self._beyond() + self.n_left
        edges = self._edges()
        passing = torch.nonzero((self.total * self.tail(edges) <= fdr * beyond) & (beyond > 0)).flatten()
        return float(edges[passing[0]]) if len(passing) else float("inf")

    def n_from(self, distance: float) -> int:
        """Number of entries counted from a bin's lower end on."""
        return int(self.counts[self._edges() >= distance].sum())
