"""Both anomaly questions over all entries, by blocks of cells: first histograms, then the entries that pass."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from ...model.likelihoods import normal
from .odd_counts import without_odd_counts
from .other_cells import OwnAndOther
from .share import RATIO_BINS, RATIO_MAX, fit_share, from_others, ratio_centers, ratio_histogram
from .thresholds import NOT_ASKED, Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from torch import Tensor

    from ...model.likelihoods import Law
    from ..posterior import Posterior
    from .odd_counts import WithoutOdd


class Scan(ABC):
    """Scores of entries under their leave-one-out predictives."""

    distance_max: ClassVar[float]
    distance_bins: ClassVar[int] = 8000
    listed_by: ClassVar[str]  # which of both questions is read first
    share: float | None = None  # of entries from other cells, where it is known

    def __init__(self, laws: OwnAndOther, direction: str) -> None:
        self._laws, self._direction = laws, direction

    @property
    def _sides(self) -> int:
        return 2 if self._direction == "both" else 1

    @abstractmethod
    def tail(self, distance: Tensor) -> Tensor:
        """Tail probability at a distance."""

    @abstractmethod
    def p_of(self, y: Tensor, scores: Scores, at: tuple[Tensor, Tensor]) -> Tensor:
        """Tail probabilities of some entries."""

    @abstractmethod
    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        """Distances in the direction asked for, and log ratios."""

    def score(self, y: Tensor, cells: slice) -> Scores:
        """Both scores of the entries `y` (cells, m)."""
        own, others = self._laws(y, cells)
        expected = own.mean()
        distance, log_ratio = self._compare(y, own, others)
        if self._direction != "both":
            asked = y > expected if self._direction == "up" else y <= expected
            log_ratio.masked_fill_(~asked, -torch.inf)
            distance.masked_fill_(~asked, NOT_ASKED)
        return Scores(expected, distance, log_ratio, own)


class NumberScan(Scan):
    """Of values without atoms; the distance is in standard deviations."""

    distance_max, listed_by = 40.0, "lfdr"

    def tail(self, distance: Tensor) -> Tensor:
        return normal.standard_tail(distance) * self._sides

    def p_of(self, y: Tensor, scores: Scores, at: tuple[Tensor, Tensor]) -> Tensor:
        return self.tail(scores.distance[at].double())

    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        distance = ((y - own.mean()) / own.variance().sqrt()).abs_()
        return distance, others.log_density(y) - own.log_density(y)


class LevelScan(Scan):
    """Of levels; the distance is minus the log tail probability, with half that of the level itself left out."""

    distance_max, listed_by = 160.0, "lfdr"

    def tail(self, distance: Tensor) -> Tensor:
        return (-distance).exp()

    def p_of(self, y: Tensor, scores: Scores, at: tuple[Tensor, Tensor]) -> Tensor:
        return self.tail(scores.distance[at].double())

    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        log_density = own.log_density(y)
        tail = torch.where(y > own.mean(), own.upper_tail(y), own.lower_tail(y)) - log_density.exp() / 2
        distance = -(self._sides * tail).clamp(1e-300, 1.0).log()
        return distance.float(), (others.log_density(y) - log_density).float()


class CountScan(Scan):
    """Of counts, zeros in closed form and the rest one by one; the distance is minus the log tail probability."""

    distance_max, listed_by = 160.0, "either"

    def __init__(self, cleaned: WithoutOdd, direction: str, fdr: float) -> None:
        super().__init__(OwnAndOther(cleaned.posterior, cleaned.taken), direction)
        self._gross, self._fdr, self.share = cleaned.gross, fdr, cleaned.share

    def tail(self, distance: Tensor) -> Tensor:
        return (-distance).exp()

    def p_of(self, y: Tensor, scores: Scores, at: tuple[Tensor, Tensor]) -> Tensor:
        """Half the probability of the count itself is left out."""
        values, law = y[at], scores.own.at(at)
        tail = _tail_beyond(law, values, values > scores.expected[at])
        return (self._sides * (tail - law.log_density(values).exp() / 2)).clamp(max=1.0)

    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        expected, log_zero = own.mean(), own.log_zero()
        log_ratio = others.log_zero() - log_zero
        distance = torch.full_like(log_zero, NOT_ASKED) if self._direction == "up" else self._two_sided(-log_zero)
        at = torch.nonzero(y, as_tuple=True)
        count, law = y[at], own.at(at)
        density = law.log_density(count)
        with_gross = density if self._gross is None else self._gross.added_to(density, count, expected[at])
        log_ratio[at] = (others.at(at).log_density(count) - with_gross).float()
        distance[at] = self._distance(count, law, expected[at], density).to(distance)
        return distance, log_ratio

    def _distance(self, y: Tensor, law: Law, expected: Tensor, log_density: Tensor) -> Tensor:
        """Minus the log tail probability of counts above zero.

        Where the probability of the count alone is above the level asked for, that stands in: such entries never pass.
        """
        distance = -log_density
        rare = torch.nonzero(log_density < math.log(self._fdr))[:, 0]
        tail = _tail_beyond(law.at(rare), y[rare], (y > expected)[rare])
        distance[rare] = -tail.clamp_min(1e-300).log()
        return self._two_sided(distance)

    def _two_sided(self, distance: Tensor) -> Tensor:
        return (distance - math.log(2)).clamp_(min=0) if self._direction == "both" else distance


def anomaly_scan(
    q: Posterior, blocks: Iterable[tuple[slice, Tensor, Tensor | None]], direction: str, fdr: float
) -> Scan:
    """The scan of a posterior; of `blocks` of cells with their values, what is odd among counts is learned first."""
    if q.likelihood.has_rate:
        return CountScan(without_odd_counts(q, blocks), direction, fdr)
    return (NumberScan if q.likelihood.linear else LevelScan)(OwnAndOther(q), direction)


def _tail_beyond(law: Law, y: Tensor, above: Tensor) -> Tensor:
    """Probability of values as far out as `y` or farther, on the side where each lies."""
    tail = torch.empty(len(y), dtype=torch.float64, device=y.device)
    tail[above] = law.at(above).upper_tail(y[above])
    tail[~above] = law.at(~above).lower_tail(y[~above])
    return tail


class Histograms:
    """Counts of all entries by distance and by log ratio."""

    def __init__(self, scan: Scan, device: torch.device) -> None:
        self._scan = scan
        self.distance = torch.zeros(scan.distance_bins, dtype=torch.float64, device=device)
        self.ratio = torch.zeros(RATIO_BINS, dtype=torch.float64, device=device)
        self.total = 0

    def add(self, scores: Scores, observed: Tensor | None = None) -> None:
        """Count a block, or those of its entries that were observed."""
        distance, ratio = scores.distance, scores.log_ratio
        if observed is not None:
            distance, ratio = distance[observed], ratio[observed]
        far = distance.clamp(max=self._scan.distance_max * (1 - 1e-6))
        self.distance += torch.histc(far, self._scan.distance_bins, 0, self._scan.distance_max)
        self.ratio += ratio_histogram(ratio)
        self.total += distance.numel()

    def thresholds(self, fdr: float) -> Thresholds:
        """Levels at which an entry passes."""
        edges = torch.arange(self._scan.distance_bins, dtype=torch.float64, device=self.distance.device)
        edges *= self._scan.distance_max / self._scan.distance_bins
        tail = self._scan.tail(edges)
        beyond = self.distance.flip(0).cumsum(0).flip(0)
        raw = torch.where(beyond > 0, self.total * tail / beyond.clamp_min(1), 1.0)
        q_values = raw.cummin(0).values.clamp(max=1)
        passing = torch.nonzero((q_values <= fdr) & (beyond > 0)).flatten()
        centers = ratio_centers(edges.device)
        share = fit_share(centers, self.ratio) if self._scan.share is None else self._scan.share
        likely = from_others(centers, share) >= 1 - fdr
        return Thresholds(
            share=share,
            min_distance=float(edges[passing[0]]) if len(passing) else float("inf"),
            min_log_ratio=float(centers[likely][0]) - RATIO_MAX / RATIO_BINS if likely.any() else float("inf"),
            q_values=q_values,
            distance_max=self._scan.distance_max,
            n_by_tail=int(beyond[passing[0]]) if len(passing) else 0,
            n_by_ratio=int(self.ratio[likely].sum()),
        )
