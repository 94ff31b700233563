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

from .tally import tally

if TYPE_CHECKING:
    from torch import Tensor

BINS = 1000
MOST_GENES = 1000
NEAR_ZERO = 1e-12


def count_transforms(
    transform: Tensor, expected: Tensor, depth: Tensor, edges: Tensor, n_depths: int, observed: Tensor | None = None
) -> Tensor:
    """Numbers of entries by depth of the cell, expected value and transform, (n_depths, strata, BINS).

    Parameters
    ----------
    transform, expected
        Of each entry, (cells, m).
    depth
        Stratum of each cell, (cells,).
    edges
        Of the strata of expected values, increasing, (strata - 1,).
    n_depths
        Number of strata of cells.
    observed
        Which entries to count, (cells, m); None counts all.
    """
    strata = len(edges) + 1
    place = (transform * BINS).floor_().clamp_(0, BINS - 1)
    beyond = torch.empty_like(place)
    for edge in edges:
        place.add_(torch.gt(expected, edge, out=beyond), alpha=BINS)
    place += (depth * (strata * BINS))[:, None].to(place)
    place = place if observed is None else place[observed]
    return tally(place, n_depths * strata * BINS).view(n_depths, strata, BINS)


def coverage(counts: Tensor) -> float:
    """Share of transforms between 0.05 and 0.95, from counts (BINS,); NaN where there are none."""
    tail = round(0.05 * BINS)
    return float(counts[tail : BINS - tail].sum().double() / counts.sum())


def kolmogorov_smirnov(counts: Tensor) -> float:
    """Largest distance between the transforms' distribution function and that of a uniform, at edges of bins.

    NaN where there are none.
    """
    uniform = torch.arange(1, BINS + 1, dtype=torch.float64, device=counts.device) / BINS
    return float((counts.cumsum(0).double() / counts.sum() - uniform).abs().max())


def most_abundant(abundance: Tensor) -> Tensor:
    """Positions of the genes whose residuals are asked whether they go together, by some measure (m,)."""
    return abundance.argsort(descending=True)[:MOST_GENES]


@dataclass(frozen=True)
class SharedResiduals:
    r"""Correlations between genes of Normal scores of the transforms, for structure that the fit has left over.

    Noise alone gives a correlation matrix of m' genes over n cells a largest eigenvalue near
    :math:`(1 + \sqrt{m' / n})^2` (Marchenko & Pastur 1967, Math USSR Sb 1:457). These are sums over cells.
    """

    n_cells: int
    total: Tensor  # (g,) float64
    product: Tensor  # (g, g) float64

    @classmethod
    def of(cls, transform: Tensor) -> SharedResiduals:
        """Correlations from the transforms of some cells, (cells, g)."""
        least = max(NEAR_ZERO, torch.finfo(transform.dtype).eps / 2)
        score = torch.special.ndtri(transform.clamp(least, 1 - least))
        return cls(len(score), score.sum(0, dtype=torch.float64), (score.T @ score).double())

    def plus(self, other: SharedResiduals) -> SharedResiduals:
        """Correlations from the cells of both."""
        return SharedResiduals(self.n_cells + other.n_cells, self.total + other.total, self.product + other.product)

    def excess(self) -> float:
        """The largest eigenvalue of the correlations over what noise gives."""
        mean = self.total / self.n_cells
        cov = self.product / self.n_cells - torch.outer(mean, mean)
        sd = cov.diagonal().clamp_min(NEAR_ZERO).sqrt()
        largest = torch.linalg.eigvalsh(cov / torch.outer(sd, sd))[-1]
        return float(largest) / (1 + (len(self.total) / self.n_cells) ** 0.5) ** 2
