"""Both anomaly questions over all entries, by blocks of cells: first histograms, then the entries that pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import normal
from .anomaly_scores import Scores
from .leave_one_out import LeaveOneOut
from .other_cells import RATIO_BINS, RATIO_MAX, fit_share, from_others, other_cells, ratio_centers, ratio_histogram

if TYPE_CHECKING:
    from torch import Tensor

    from .anomaly_scan_counts import CountAnomalyScan
    from .posterior import NormalPosterior


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


class AnomalyScan:
    """Scores of entries under their leave-one-out predictives; the distance is in standard deviations."""

    distance_max, distance_bins = 40.0, 8000
    share: float | None = None  # of entries from other cells, where it is known

    def __init__(self, q: NormalPosterior, direction: str) -> None:
        self._loo = LeaveOneOut(q)
        self._others = other_cells(q)
        self._mean = self._others.mean.float()
        self._direction = direction

    def tail(self, distance: Tensor) -> Tensor:
        """Tail probability at a distance."""
        return normal.upper_tail(distance) * (2 if self._direction == "both" else 1)

    def p_of(self, y: Tensor, scores: Scores, at: tuple[Tensor, Tensor]) -> Tensor:
        """Tail probabilities of some entries."""
        return self.tail(scores.distance[at].double())

    def score(self, y: Tensor, cells: slice) -> Scores:
        """Both scores of the entries `y` (cells, m)."""
        predictive = self._loo.predictive(y, cells)
        signed = (y - predictive.mean) / predictive.var.sqrt()
        log_ratio = normal.log_density(y, self._mean, self._others.seen_by(cells))
        log_ratio -= normal.log_density(y, predictive.mean, predictive.var)
        if self._direction == "both":
            return Scores(predictive.mean, signed.abs_(), log_ratio)
        distance = signed if self._direction == "up" else signed.neg_()
        return Scores(predictive.mean, distance, log_ratio.masked_fill_(distance <= 0, -torch.inf))


class Histograms:
    """Counts of all entries by distance and by log ratio."""

    def __init__(self, scan: AnomalyScan | CountAnomalyScan, device: torch.device) -> None:
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
