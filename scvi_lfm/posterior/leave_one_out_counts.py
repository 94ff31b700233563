r"""Leave-one-out predictions of observed counts, without a refit.

As for the Normal likelihood, with the Fisher weight in place of the precision and the score in place of the weighted
residual: an entry acts on its own prediction through its cell, with leverage :math:`h_c = w_{ij} v_j' S_i v_j`, and
through its gene, with :math:`h_g = w_{ij} u_i' T_j u_i`. At the fixed point of inference the entry is one Normal
observation of eta among others, and taking it out of either side is exact given the other's weights:

.. math::

    \rho &= \frac{v_j' S_i v_j}{1 - h_c} + \frac{u_i' T_j u_i}{1 - h_g} \\
    \mathrm{mean} &= \bar\eta_{ij} - \rho g_{ij}, \qquad
    \mathrm{var}(\eta_{ij}) = \rho + \mathrm{tr}(S_{AA,i} T_{BB,j})
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import COUNTS
from .packed import doubled, off_first, outer
from .posterior import extend
from .predictive import Moments
from .rates import MAX_LOG_RATE

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import CountPosterior

MAX_LEVERAGE = 0.999
# a rate below this cannot be told from none
MIN_LOG_RATE = -50.0


class CountLeaveOneOut:
    """Leave-one-out moments of eta, the size factor in it, for blocks of cells with all genes."""

    def __init__(self, q: CountPosterior) -> None:
        self._q, self.name = q, q.noise.likelihood
        self._likelihood = COUNTS[self.name]
        gene_mean = q.gene_mean.float()
        self._slopes, self._abundance = extend(gene_mean), gene_mean[:, 0]
        weights = doubled(gene_mean.shape[1], gene_mean)
        gene_cov = q.gene_cov.packed().float()
        self._from_cells = outer(self._slopes) * weights
        self._from_genes = gene_cov * weights
        self._product = self._from_genes * off_first(gene_mean.shape[1], weights)
        self.dispersion = q.noise.dispersion.float()

    def fitted(self, cells: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean of eta and the three parts of its variance: by the cell, by the gene, by both, (cells, m) each."""
        q = self._q
        mean = q.cell_mean[cells].float()
        cov = q.cell_cov.at(cells).packed()
        offset = (q.noise.log_size[cells] + q.mu).float()
        eta = torch.addmm(self._abundance, mean, self._slopes.T).add_(offset[:, None])
        by_gene = outer(extend(mean)) @ self._from_genes.T
        return eta, cov @ self._from_cells.T, by_gene, cov @ self._product.T

    def eta(self, y: Tensor, cells: slice) -> tuple[Moments, Tensor]:
        """Moments of eta for the counts `y` (cells, m), each without itself; and the rates with all of them."""
        eta, by_cell, by_gene, by_both = self.fitted(cells)
        rate = (eta + 0.5 * (by_cell + by_gene + by_both)).clamp_(max=MAX_LOG_RATE).exp_()
        weight, score = self._likelihood.weight_and_score(y, rate, self.dispersion)
        spread = _without(by_cell, weight).add_(_without(by_gene, weight))
        mean = torch.addcmul(eta, spread, score, value=-1).clamp_(MIN_LOG_RATE, MAX_LOG_RATE)
        return Moments(mean, spread.add_(by_both)), rate


def _without(var: Tensor, weight: Tensor) -> Tensor:
    return var / (1 - (var * weight).clamp_(max=MAX_LEVERAGE))
