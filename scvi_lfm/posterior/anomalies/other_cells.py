r"""The question "does this value look as if it came from other cells?" for one gene at a time.

.. math:: \eta_{ij} \mid \text{other cells} \sim \mathrm{Normal}(M_j, V_j)

with M_j and V_j the mean and variance of the gene's expected eta over the fitted population of cells; under the Normal
likelihood, y is then Normal with variance :math:`V_j + s_j^2`. For counts

.. math::

    y \mid \text{other cells} \sim \mathrm{NB}(s_i M_j, \phi'_j), \qquad
    1 + \phi'_j = (1 + V_j / M_j^2)(1 + \phi_j)

with M_j and V_j the mean and variance of the gene's fitted rates, at size factor one, over the other cells at hand.
Presence is that of the rate :math:`-s_i \log(1 - P_j)`, with P_j its average over them. The cell itself is left out,
because an odd count pulls its own fitted rate up. A gene that is rare everywhere is as improbable under either as under
the cell's own prediction: rarity alone cannot score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..._workers import in_order
from ...data.blocks import slices
from ...model.likelihoods.base import OfCounts
from ..leave_one_out import LeaveOneOut
from ..posterior import Moments
from ..rates import GeneFeatures, cell_features, rates

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.likelihoods import Law
    from ..posterior import Posterior
    from ..shares_left_out import SharesLeftOut

CELLS_PER_BLOCK = 512
TINY, MOST_VARIANCE = 1e-20, 1e8
# presence beyond it is certain, as far as float32 can tell
MOST_PRESENT = 1 - 1e-6


class OwnAndOther:
    """The laws of entries by their own cells, which have not seen them, and by others.

    Of values in `taken`, their own cells have not seen a share.
    """

    def __init__(self, q: Posterior, taken: SharesLeftOut | None = None) -> None:
        self._q, self._loo = q, LeaveOneOut(q, taken)
        self._others = OtherRates(q) if q.likelihood.has_rate else OtherCells(q)

    @property
    def device(self) -> torch.device:
        """Device of the computations."""
        return self._q.gene_mean.device

    def __call__(self, y: Tensor, cells: slice) -> tuple[Law, Law]:
        """Laws of the entries `y` (cells, m), by their own cells and by others."""
        eta, seen = self._loo.eta(y, cells)
        return self._q.law_in_cells(eta, cells), self._others.law(cells, seen)


class OtherCells:
    """Laws of the values of each gene in other cells, from what is expected of the population."""

    def __init__(self, q: Posterior) -> None:
        eta = q.population()
        self._q, self._eta = q, Moments(eta.mean.float(), eta.var.float())

    def law(self, cells: slice, seen: Tensor) -> Law:
        """Laws of the values in some cells."""
        return self._q.law_in_cells(self._eta, cells)


class OtherRates:
    """Laws of the counts of each gene in other cells, from the rates of the cells at hand."""

    def __init__(self, q: Posterior) -> None:
        self._likelihood, self._offset, self._n_cells = q.likelihood, q.noise.offset, len(q.cell_mean)
        (self._dispersion,) = q.noise.of_cells(None, torch.float32)
        # sums over cells of the expected value at size factor one, and of its square, (m,) each
        self._total, self._square = self._sums(q)

    def law(self, cells: slice, seen: Tensor) -> OfCounts:
        """Laws of the counts in some cells, whose own rates `seen` (cells, m) are left out."""
        size = self._offset(cells)[:, None].exp().float()
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

    def _sums(self, q: Posterior) -> tuple[Tensor, Tensor]:
        features = GeneFeatures.of(q.gene_mean.float(), q.gene_cov.packed().float())

        def of_block(cells: slice) -> tuple[Tensor, Tensor]:
            mean = q.cell_mean[cells].float()
            left = cell_features(mean, q.cell_cov.at(cells).packed())
            offset = mean.new_full((len(mean),), q.mu)
            total, square = mean.new_empty(2, len(q.gene_mean))
            for genes in features.blocks(len(mean)):
                rate = rates(features.linear(mean, genes), features.half_variance(left, genes), offset)
                value = self._likelihood.mean(rate, torch.zeros_like(rate[0]))
                total[genes], square[genes] = value.sum(0), value.square().sum(0)
            return total, square

        total = torch.zeros(len(q.gene_mean), dtype=torch.float64, device=q.gene_mean.device)
        square = torch.zeros_like(total)
        for of_total, of_square in in_order(of_block, slices(self._n_cells, 0, size=CELLS_PER_BLOCK)):
            total += of_total
            square += of_square
        return total.float(), square.float()
