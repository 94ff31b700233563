r"""The question "does this value look as if it came from other cells?" for one gene at a time.

.. math:: \eta_{ij} \mid \text{other cells} \sim \mathrm{Normal}(M_j, V_j)

with M_j and V_j the mean and variance of the gene's expected eta over the fitted population of cells; under the Normal
likelihood, y is then Normal with variance :math:`V_j + \tilde\sigma_j^2`. For counts

.. math::

    y \mid \text{other cells} \sim \mathrm{NB}(s_i M_j, \phi'_j), \qquad
    1 + \phi'_j = (1 + V_j / M_j^2)(1 + \phi_j)

with M_j and V_j the mean and variance of the gene's fitted rates, at size factor one, over the other cells at hand.
Presence is that of the rate :math:`-s_i \log(1 - M_j)`, with M_j its average over them. The cell itself is left out,
because an odd count pulls its own fitted rate up. A gene that is rare everywhere is as improbable under either as under
the cell's own prediction: rarity alone cannot score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...model.likelihoods import OfCounts
from ..leave_one_out import LeaveOneOut
from ..posterior import Moments
from ..rates import GeneFeatures
from ..tally import added

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.likelihoods import Law
    from ..dense_blocks import DenseBlocks
    from ..posterior import Posterior
    from ..shares_left_out import SharesLeftOut

CELLS_PER_BLOCK = 512
TINY, MOST_VARIANCE = 1e-20, 1e8
# presence beyond it is certain, as far as float32 can tell
MOST_PRESENT = 1 - 1e-6


class OwnAndOther:
    """The laws of entries by their own cells, which have not seen them, and by others.

    Of the posterior of all cells, what is kept is that of the genes.
    """

    def __init__(self, q: Posterior, blocks: DenseBlocks) -> None:
        self.device, self._loo = q.gene_mean.device, LeaveOneOut(q)
        self._others = OtherRates(q, blocks) if q.likelihood.has_rate else OtherCells(q)

    def __call__(self, y: Tensor, some: Posterior, taken: SharesLeftOut | None) -> tuple[Law, Law]:
        """Laws of the entries `y` (cells, m) of some cells, whose posterior is given, by these cells and by others.

        Of values in `taken`, their own cells have not seen a share.
        """
        eta, seen = self._loo.eta(y, some, taken)
        return some.law_in_cells(eta), self._others.law(some, seen)


class OtherCells:
    """Laws of the values of each gene in other cells, from what is expected of the population."""

    def __init__(self, q: Posterior) -> None:
        eta = q.population()
        self._eta = Moments(eta.mean.float(), eta.var.float())

    def law(self, some: Posterior, seen: Tensor) -> Law:
        """Laws of the values in some cells."""
        return some.law_in_cells(self._eta)


class OtherRates:
    """Laws of the counts of each gene in other cells, from the rates of the cells at hand."""

    def __init__(self, q: Posterior, blocks: DenseBlocks) -> None:
        self._likelihood, self._n_cells = q.likelihood, len(q.cell_mean)
        (self._dispersion,) = q.noise.of_cells(None, torch.float32)
        # sums over cells of the expected value at size factor one, and of its square, (m,) each
        self._total, self._square = _rate_sums(q, blocks)

    def law(self, some: Posterior, seen: Tensor) -> OfCounts:
        """Laws of the counts in some cells, whose own rates `seen` (cells, m) are left out."""
        size = some.noise.offset(slice(None))[:, None].exp().float()
        rate, dispersion = self._without(seen / size)
        return OfCounts(self._likelihood, size * rate, (dispersion,))

    def _without(self, rate: Tensor) -> tuple[Tensor, Tensor]:
        """M and phi' for cells whose own rates (cells, m), at size factor one, are left out."""
        n = max(self._n_cells - 1, 1)
        own = self._likelihood.mean(rate, torch.zeros_like(self._total))
        average = torch.sub(self._total, own).div_(n).clamp_min_(TINY)
        if self._likelihood.maximum == 1:
            return -torch.log1p(-average.clamp(max=MOST_PRESENT)), torch.zeros_like(average)
        square = torch.addcmul(self._square, own, own, value=-1).div_(n).clamp_min_(0)
        relative = square.div_(average).div_(average).sub_(1).clamp_(0, MOST_VARIANCE)
        return average, relative.mul_(1 + self._dispersion).add_(self._dispersion)


def _rate_sums(q: Posterior, blocks: DenseBlocks) -> Tensor:
    """Sums over cells of the expected value at size factor one, and of its square, (2, m)."""
    features = GeneFeatures.of(q.gene_mean.float(), q.gene_cov.packed().float())
    mu, likelihood = q.mu, q.likelihood

    def of_block(some: Posterior) -> Tensor:
        mean = some.cell_mean.float()
        left = features.of_cells(mean, some.cell_cov.packed(), mean.new_full((len(mean),), mu))
        sums = mean.new_empty(2, len(q.gene_mean))
        for genes in features.blocks(len(mean)):
            rate = features.rates(left, genes)
            value = likelihood.mean(rate, torch.zeros_like(rate[0]))
            sums[0, genes], sums[1, genes] = value.sum(0), value.square().sum(0)
        return sums.double()

    return added(blocks.each_posterior(of_block, q, CELLS_PER_BLOCK, pool=added)).float()
