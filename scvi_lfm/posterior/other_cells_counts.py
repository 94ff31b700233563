r"""The question "does this count look as if it came from other cells?" for one gene at a time.

.. math::

    y \mid \text{other cells} \sim \mathrm{NB}(s_i M_j, \phi'_j), \qquad
    1 + \phi'_j = (1 + V_j / M_j^2)(1 + \phi_j)

with M_j and V_j the mean and variance of the gene's fitted rates, at size factor one, over the other cells at hand.
Presence is that of the rate :math:`-s_i \log(1 - M_j)`, with M_j its average over them. A gene that is rare everywhere
is as improbable under it as under the cell's own prediction: rarity alone cannot score. The cell itself is left out,
because an odd count pulls its own fitted rate up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import COUNTS
from .rates import GeneFeatures, cell_features, rates

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import CountPosterior

CELLS_PER_BLOCK = 512
TINY, MOST_VARIANCE = 1e-20, 1e8
# presence beyond it is certain, as far as float32 can tell
MOST_PRESENT = 1 - 1e-6


@dataclass(frozen=True)
class OtherCellsCounts:
    """Sums of each gene's expected value at size factor one, and of its square, over the cells, (m,) each."""

    likelihood: str
    total: Tensor
    square: Tensor
    n_cells: int
    gene_dispersion: Tensor

    def without(self, rate: Tensor) -> tuple[Tensor, Tensor]:
        """M and phi' for cells whose own fitted rates (cells, m) are left out."""
        likelihood, n = COUNTS[self.likelihood], max(self.n_cells - 1, 1)
        own = likelihood.mean(rate, torch.zeros_like(self.total))
        average = ((self.total - own) / n).clamp_min(TINY)
        if likelihood.MAXIMUM == 1:
            return -torch.log1p(-average.clamp(max=MOST_PRESENT)), torch.zeros_like(average)
        square = (self.square - own.square()).div_(n).clamp_min(0)
        relative = (square / average.square()).sub_(1).clamp_(0, MOST_VARIANCE)
        return average, relative.mul_(1 + self.gene_dispersion).add_(self.gene_dispersion)


def other_cells_counts(q: CountPosterior) -> OtherCellsCounts:
    """Population moments of each gene's expected value over the cells of q."""
    likelihood = COUNTS[q.noise.likelihood]
    features = GeneFeatures.of(q.gene_mean.float(), q.gene_cov.packed().float())
    n, m = len(q.cell_mean), len(q.gene_mean)
    total = torch.zeros(m, dtype=torch.float64, device=q.gene_mean.device)
    square = torch.zeros_like(total)
    for start in range(0, n, CELLS_PER_BLOCK):
        cells = slice(start, start + CELLS_PER_BLOCK)
        mean = q.cell_mean[cells].float()
        left = cell_features(mean, q.cell_cov.at(cells).packed())
        offset = mean.new_full((len(mean),), q.mu)
        for genes in features.blocks(len(mean)):
            rate = rates(features.linear(mean, genes), features.half_variance(left, genes), offset)
            value = likelihood.mean(rate, torch.zeros_like(rate))
            total[genes] += value.sum(0)
            square[genes] += value.square().sum(0)
    return OtherCellsCounts(q.noise.likelihood, total.float(), square.float(), n, q.noise.dispersion.float())
