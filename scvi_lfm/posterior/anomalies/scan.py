"""Both anomaly questions of a block of entries: how improbable, and how much rather from other cells."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from ...model.likelihoods import normal
from ..tally import added
from .odd_counts import without_odd_counts
from .other_cells import OwnAndOther
from .share import fit_share, ratio_histogram
from .thresholds import NOT_ASKED, Scores

if TYPE_CHECKING:
    from typing import ClassVar

    from torch import Tensor

    from ...model.likelihoods import Law
    from ..dense_blocks import DenseBlock, DenseBlocks
    from ..posterior import Posterior
    from ..shares_left_out import SharesLeftOut
    from .gross_errors import GrossErrors
    from .odd_counts import WithoutOdd


class Scan(ABC):
    """Scores of entries under their leave-one-out predictives; the distance is minus the log of a tail probability."""

    distance_max: ClassVar[float] = 160.0
    distance_bins: ClassVar[int] = 8000
    listed_by: ClassVar[str] = "lfdr"  # which of both questions is read first

    def __init__(self, laws: OwnAndOther, direction: str) -> None:
        self.device, self._laws, self._direction = laws.device, laws, direction

    @property
    def _sides(self) -> int:
        return 2 if self._direction == "both" else 1

    def tail(self, distance: Tensor) -> Tensor:
        """Tail probability at a distance."""
        return (-distance).exp()

    def p_of(self, y: Tensor, distance: Tensor, own: Law) -> Tensor:
        """Tail probabilities of some entries (k,), at their distances and under their own cells' laws."""
        return self.tail(distance.double())

    @abstractmethod
    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        """Distances in the direction asked for, and log ratios."""

    def score(self, y: Tensor, some: Posterior, taken: SharesLeftOut | None = None) -> Scores:
        """Scores of the entries `y` (cells, m) of some cells, whose posterior is given: both questions."""
        own, others = self._laws(y, some, taken)
        expected = own.mean()
        distance, log_ratio = self._compare(y, own, others)
        if self._direction != "both":
            asked = y > expected if self._direction == "up" else y <= expected
            log_ratio.masked_fill_(~asked, -torch.inf)
            distance.masked_fill_(~asked, NOT_ASKED)
        return Scores(expected, distance, log_ratio, own)


class NumberScan(Scan):
    """Scan of values under Normal laws; the distance is in standard deviations."""

    distance_max = 40.0

    def tail(self, distance: Tensor) -> Tensor:
        return normal.standard_tail(distance) * self._sides

    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        var, of_others = own.variance(), others.variance()
        distance = (y - own.mean()).div_(var.sqrt())
        from_others = (y - others.mean()).div_(of_others.sqrt())
        # of two Normals
        log_ratio = var.log().sub_(of_others.log())
        log_ratio.addcmul_(distance, distance).addcmul_(from_others, from_others, value=-1).mul_(0.5)
        return distance.abs_(), log_ratio


class LevelScan(Scan):
    """Scan of levels; the tail leaves out half the probability of the level itself."""

    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        log_density = own.log_density(y)
        tail = torch.where(y > own.mean(), own.upper_tail(y), own.lower_tail(y)) - log_density.exp() / 2
        distance = -(self._sides * tail).clamp(1e-300, 1.0).log()
        return distance.float(), (others.log_density(y) - log_density).float()


class CountScan(Scan):
    """Scan of counts, zeros in closed form and the rest one by one."""

    listed_by = "either"

    def __init__(self, laws: OwnAndOther, direction: str, gross: GrossErrors | None, fdr: float) -> None:
        super().__init__(laws, direction)
        self._gross, self._fdr = gross, fdr

    def p_of(self, y: Tensor, distance: Tensor, own: Law) -> Tensor:
        """Tail probabilities of some counts (k,), half the probability of the count itself left out."""
        tail = _tail_beyond(own, y, y > own.mean())
        return (self._sides * (tail - own.log_density(y).exp() / 2)).clamp(max=1.0)

    def _compare(self, y: Tensor, own: Law, others: Law) -> tuple[Tensor, Tensor]:
        expected, log_zero = own.mean(), own.log_zero()
        log_ratio = others.log_zero().sub_(log_zero)
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


def anomaly_scan(q: Posterior, blocks: DenseBlocks, direction: str, fdr: float) -> tuple[Scan, WithoutOdd, float]:
    """The scan of all cells, the posterior under which they are scored, and the share of entries from other cells.

    All cells are read once. What is odd among counts is learned with it; it has been taken out of that posterior.
    """
    cleaned = without_odd_counts(q, blocks)
    laws = OwnAndOther(cleaned.posterior, blocks)
    scan: Scan
    if q.likelihood.has_rate:
        scan = CountScan(laws, direction, cleaned.gross, fdr)
    else:
        scan = (NumberScan if q.likelihood.linear else LevelScan)(laws, direction)
    return scan, cleaned, _share(scan, q, blocks) if cleaned.share is None else cleaned.share


def _share(scan: Scan, q: Posterior, blocks: DenseBlocks) -> float:
    def ratios(block: DenseBlock) -> Tensor:
        return ratio_histogram(scan.score(block.values(), block.posterior).log_ratio, block.observed())

    return fit_share(added(blocks.each(ratios, q, pool=added)))


def _tail_beyond(law: Law, y: Tensor, above: Tensor) -> Tensor:
    """Probability of values as far out as `y` or farther, on the side where each lies."""
    tail = torch.empty(len(y), dtype=torch.float64, device=y.device)
    tail[above] = law.at(above).upper_tail(y[above])
    tail[~above] = law.at(~above).lower_tail(y[~above])
    return tail
