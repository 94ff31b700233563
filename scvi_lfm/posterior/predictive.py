r"""Predictions of entries: moments of eta, for pairs and for blocks of cells.

.. math:: \mathrm{var}(\eta_{ij}) = u_i' T_j u_i + v_j' S v_j + \mathrm{tr}(S_{AA} T_{BB,j})

The predictive distribution adds the likelihood's own variance. For counts eta holds the log size factor.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .._workers import in_order
from ..data.batch import csr_tensor
from ..linalg.moments import one_first
from ..linalg.packed import doubled, outer, slope_moments
from .dense_blocks import block_size
from .posterior import Moments, extend

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior

PAIRS_PER_BLOCK = 20_000


def eta_of_pairs(q: Posterior, cells: Tensor, genes: Tensor) -> Moments:
    """Moments of eta for cell `cells[k]` with gene `genes[k]`, (pairs,)."""
    parts = zip(cells.split(PAIRS_PER_BLOCK), genes.split(PAIRS_PER_BLOCK), strict=True)
    return Moments.joined(_pairs(q, *part) for part in parts)


def eta_of_grid(q: Posterior, cells: Tensor, genes: Tensor) -> Moments:
    """Moments of eta for each cell with each gene, those of a cell together, (cells x genes,): products of matrices."""
    q = q.at_genes(genes)
    predictor = BlockPredictor(q, dtype=torch.float64)
    blocks = cells.split(block_size(len(genes)))
    found = Moments.joined(in_order(lambda block: predictor.moments(q.at_cells(block)), blocks))
    return Moments(found.mean.flatten(), found.var.flatten())


def _pairs(q: Posterior, cells: Tensor, genes: Tensor) -> Moments:
    by_cell, by_gene, by_both = variances_of_pairs(q, cells, genes, torch.float64)
    return Moments(mean_of_pairs(q, cells, genes), by_gene + by_cell + by_both)


def variances_of_pairs(q: Posterior, cells: Tensor, genes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The variance of eta for cell `cells[k]` with gene `genes[k]` by part, as in :class:`BlockPredictor`, (pairs,)."""
    some, place = cells.unique(return_inverse=True)  # a covariance that is not held is made once for a cell
    S, T = q.cell_cov.at(some).made().at(place), q.gene_cov.at(genes)
    u, v = extend(q.cell_mean[cells]).to(dtype), extend(q.gene_mean[genes]).to(dtype)
    return S.quadratic(v), T.quadratic(u), S.slope_products_of_pairs(T)


class EntryPredictor:
    """Moments of eta for some entries of blocks of cells; what depends on genes alone is computed once."""

    def __init__(self, q: Posterior) -> None:
        self._q = q
        v = extend(q.gene_mean).float()
        self._cov, self._outer = q.gene_cov.packed().float().T, outer(v).T
        self._mean = torch.cat([q.gene_mean[:, :1], extend(q.gene_mean)], dim=1).T

    def moments(self, block: slice, cells: Tensor, genes: Tensor) -> Moments:
        """Moments of eta for cell `cells[k]`, in order and all of the block, with gene `genes[k]`, (entries,)."""
        mean = self._q.cell_mean[block]
        n, m = len(mean), self._mean.shape[1]
        u, S = extend(mean).float(), self._q.cell_cov.at(block).packed().float()
        starts = torch.searchsorted(cells.contiguous(), torch.arange(n + 1, device=cells.device) + block.start)
        variances, means = (
            csr_tensor(starts, genes, zeros, (n, m)) for zeros in (u.new_zeros(len(genes)), mean.new_zeros(len(genes)))
        )
        # (u u' + S_AA) . T, then v' S v, both summed over lower triangles
        weights = doubled(u.shape[1], u)
        variances = torch.sparse.sampled_addmm(variances, slope_moments(u, S).mul_(weights), self._cov)
        variances = torch.sparse.sampled_addmm(variances, S * weights, self._outer)
        means = torch.sparse.sampled_addmm(means, one_first(mean), self._mean)
        return Moments(_with_offset(self._q, means.values(), cells), variances.values().double())


def mean_of_pairs(q: Posterior, cells: Tensor, genes: Tensor) -> Tensor:
    """Mean of eta for cell `cells[k]` with gene `genes[k]`, (pairs,)."""
    gene = q.gene_mean[genes]
    return _with_offset(q, gene[:, 0] + (q.cell_mean[cells] * extend(gene)).sum(1), cells)


def _with_offset(q: Posterior, mean: Tensor, cells: Tensor) -> Tensor:
    return q.mu + mean + q.noise.offset(cells)


class BlockPredictor:
    """Moments of eta for some cells by all genes; what depends on genes alone is computed once, and all that is kept.

    Parameters
    ----------
    q
        The posterior of any cells.
    dtype
        Precision of the blocks.
    """

    def __init__(self, q: Posterior, dtype: torch.dtype = torch.float32) -> None:
        self._q, self._dtype = q.at_cells(slice(0)), dtype
        self._v = extend(q.gene_mean)
        self._slopes = self._v.T.to(dtype)
        self._intercept = (q.mu + q.gene_mean[:, 0]).to(dtype)

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        """Sides of the genes in v' S v and in the products with T, (m, c) each."""
        return self._q.cell_cov.forms(self._v).to(self._dtype), self._q.gene_cov.coordinates().to(self._dtype)

    def mean(self, some: Posterior) -> Tensor:
        """Expected eta of some cells, whose posterior is given, (cells, m)."""
        mean = torch.addmm(self._intercept, some.cell_mean.to(self._dtype), self._slopes)
        if not some.likelihood.has_rate:
            return mean
        return mean.add_(some.noise.offset(slice(None)).to(self._dtype)[:, None])

    def variances(self, some: Posterior) -> tuple[Tensor, Tensor, Tensor]:
        """The variance of eta by part, v' S_i v, u' T_j u and tr(S_AA T_BB): (cells, m) or what broadcasts to it."""
        S, u = some.cell_cov.made(), extend(some.cell_mean)
        of_v, of_genes = self._sides
        by_cell = S.coordinates().to(self._dtype) @ of_v.T
        by_gene = self._q.gene_cov.forms(u).to(self._dtype) @ of_genes.T
        by_both = self._q.gene_cov.traces(S.slopes()).to(self._dtype) @ of_genes.T
        return by_cell, by_gene, by_both

    def moments(self, some: Posterior) -> Moments:
        """Mean and variance of eta, (cells, m) each."""
        by_cell, by_gene, by_both = self.variances(some)
        return Moments(self.mean(some), by_gene.add_(by_both).add_(by_cell))

    def expected(self, some: Posterior) -> Tensor:
        """Expected values, (cells, m); the variance of eta is found only where it matters."""
        if some.likelihood.linear:
            return self.mean(some)
        return some.law_in_cells(self.moments(some)).mean()
