r"""Calibration of the leave-one-out predictives: probability integral transforms, counted by stratum.

.. math::

    \mathrm{pit}_{ij} = \Pr(Y < y_{ij}) + \mathrm{uniform}_{ij} \Pr(Y = y_{ij}), \qquad
    \mathrm{uniform}_{ij} \sim \mathrm{Uniform}(0, 1)

is uniform where the predictive is right (Smith 1985, J Forecast 4:283; randomised for counts by Brockwell 2007, Stat
Probab Lett 77:1473). Each entry is predicted without itself, on the side of its cell and of its gene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BINS = 1000
MOST_GENES = 1000
NEAR_ZERO = 1e-12


@dataclass
class TransformCounts:
    """Numbers of entries by depth of the cell, expected value and transform."""

    edges: Tensor  # (strata - 1,): of the expected value, increasing
    counts: Tensor  # (depths, strata, BINS)

    @classmethod
    def empty(cls, edges: Tensor, n_depths: int) -> TransformCounts:
        """Nothing counted yet."""
        return cls(edges, torch.zeros(n_depths, len(edges) + 1, BINS, dtype=torch.int64, device=edges.device))

    def add(self, expected: Tensor, transform: Tensor, depth: Tensor) -> None:
        """Count entries; `depth` holds the stratum of each entry's cell."""
        stratum = torch.bucketize(expected, self.edges)
        bins = (transform * BINS).long().clamp_(0, BINS - 1)
        place = (depth * (len(self.edges) + 1) + stratum) * BINS + bins
        self.counts += torch.bincount(place.flatten(), minlength=self.counts.numel()).view_as(self.counts)


def coverage(counts: Tensor, level: float = 0.9) -> float:
    """Share of transforms in the central interval that should hold `level` of them, from counts (BINS,).

    NaN where there are none.
    """
    tail = round(BINS * (1 - level) / 2)
    return float(counts[tail : BINS - tail].sum().double() / counts.sum())


def kolmogorov_smirnov(counts: Tensor) -> float:
    """Largest distance between the transforms' distribution function and that of a uniform, at edges of bins.

    NaN where there are none.
    """
    uniform = torch.arange(1, BINS + 1, dtype=torch.float64, device=counts.device) / BINS
    return float((counts.cumsum(0).double() / counts.sum() - uniform).abs().max())


@dataclass
class SharedResiduals:
    r"""Correlations between genes of Normal scores of the transforms, for structure that the fit has left over.

    Noise alone gives a correlation matrix of m' genes over n cells a largest eigenvalue near
    :math:`(1 + \sqrt{m' / n})^2` (Marchenko & Pastur 1967, Math USSR Sb 1:457).
    """

    genes: Tensor  # (g,): positions
    n_cells: int
    total: Tensor  # (g,)
    product: Tensor  # (g, g)

    @classmethod
    def empty(cls, abundance: Tensor) -> SharedResiduals:
        """For the most abundant genes, by some measure (m,)."""
        genes = abundance.argsort(descending=True)[:MOST_GENES]
        zero = torch.zeros(len(genes), len(genes), dtype=torch.float64, device=abundance.device)
        return cls(genes, 0, zero[0].clone(), zero)

    def add(self, transform: Tensor) -> None:
        """Add the transforms of a block, (cells, m)."""
        inside = transform[:, self.genes].double().clamp(NEAR_ZERO, 1 - NEAR_ZERO)
        score = torch.special.ndtri(inside)
        self.n_cells += len(score)
        self.total += score.sum(0)
        self.product += score.T @ score

    def excess(self) -> float:
        """The largest eigenvalue of the correlations over what noise gives."""
        mean = self.total / self.n_cells
        cov = self.product / self.n_cells - torch.outer(mean, mean)
        sd = cov.diagonal().clamp_min(NEAR_ZERO).sqrt()
        largest = torch.linalg.eigvalsh(cov / torch.outer(sd, sd))[-1]
        return float(largest) / (1 + (len(self.genes) / self.n_cells) ** 0.5) ** 2
