"""Leave-one-out moments of counts: the Fisher weight in place of the precision, the score in place of the residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..linalg.covariances import Packed
from ..linalg.packed import doubled, off_first, outer
from ..model.likelihoods import COUNTS
from .leave_one_out import Fitted, left_out
from .posterior import extend
from .predictive import mean_of_pairs
from .rates import MAX_LOG_RATE

if TYPE_CHECKING:
    from torch import Tensor

    from ..linalg.covariances import Covariance
    from .posterior import CountPosterior
    from .predictive import Moments
    from .shares_left_out import SharesLeftOut

# a rate below this cannot be told from none
MIN_LOG_RATE = -50.0


class CountLeaveOneOut:
    """Leave-one-out moments of eta, the size factor in it, for blocks of cells with all genes.

    Means of the posterior have not seen a share of the counts in `taken`; covariances have seen all.
    """

    def __init__(self, q: CountPosterior, taken: SharesLeftOut | None = None) -> None:
        self._q, self.name, self._taken = q, q.noise.likelihood, taken
        self._likelihood = COUNTS[self.name]
        gene_mean = q.gene_mean.float()
        self._slopes, self._abundance = extend(gene_mean), gene_mean[:, 0]
        weights = doubled(gene_mean.shape[1], gene_mean)
        gene_cov = q.gene_cov.packed().float()
        self._from_cells = outer(self._slopes) * weights
        self._from_genes = gene_cov * weights
        self._product = self._from_genes * off_first(gene_mean.shape[1], weights)
        self.dispersion = q.noise.dispersion.float()

    def fitted(self, cells: slice) -> Fitted:
        """Moments of eta with all counts, (cells, m) each."""
        q = self._q
        mean = q.cell_mean[cells].float()
        cov = q.cell_cov.at(cells).packed()
        offset = (q.noise.log_size[cells] + q.mu).float()
        eta = torch.addmm(self._abundance, mean, self._slopes.T).add_(offset[:, None])
        by_gene = outer(extend(mean)) @ self._from_genes.T
        return Fitted(eta, cov @ self._from_cells.T, by_gene, cov @ self._product.T)

    def eta(self, y: Tensor, cells: slice) -> tuple[Moments, Tensor]:
        """Moments of eta for the counts `y` (cells, m), each without itself; and the rates with all of them."""
        fitted = self.fitted(cells)
        rate = rate_of(fitted)
        weight, score = self._likelihood.weight_and_score(y, rate, self.dispersion)
        if self._taken is not None:
            taken = self._taken.rows(cells)
            score[taken.cell, taken.gene] *= taken.seen
        return count_left_out(fitted, weight, score), rate


def rate_of(fitted: Fitted) -> Tensor:
    """Expected rates, where the mean of eta holds the log size factor."""
    spread = fitted.by_cell + fitted.by_gene + fitted.by_both
    return (fitted.mean + 0.5 * spread).clamp_(max=MAX_LOG_RATE).exp_()


def count_left_out(fitted: Fitted, weight: Tensor, score: Tensor) -> Moments:
    """Moments of eta without some counts, within what a rate can be."""
    eta = left_out(fitted, weight, score)
    eta.mean.clamp_(MIN_LOG_RATE, MAX_LOG_RATE)
    return eta


def fitted_of_pairs(q: CountPosterior, cells: Tensor, genes: Tensor) -> Fitted:
    """Moments of eta for cell `cells[k]` with gene `genes[k]`, (pairs,) each."""
    S, T = _of_pairs(q.cell_cov, cells), q.gene_cov.at(genes)
    u, v = extend(q.cell_mean[cells]), extend(q.gene_mean[genes])
    parts = mean_of_pairs(q, cells, genes), S.quadratic(v), T.quadratic(u), S.slope_products_of_pairs(T)
    return Fitted(*(part.float() for part in parts))


def _of_pairs(cov: Covariance, rows: Tensor) -> Packed:
    """Covariances of rows that repeat, each made once."""
    different, place = rows.unique_consecutive(return_inverse=True)
    return Packed(cov.at(different).packed()[place])
