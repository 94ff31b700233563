r"""Predictions of entries: moments of eta, for pairs and for blocks of cells.

.. math:: \mathrm{var}(\eta_{ij}) = u_i' T_j u_i + v_j' S v_j + \mathrm{tr}(S_{AA} T_{BB,j})

The predictive distribution adds the noise s_j^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .posterior import extend

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior


@dataclass(frozen=True)
class Moments:
    """Mean and variance of eta."""

    mean: Tensor
    var: Tensor


def eta_of_pairs(q: Posterior, cells: Tensor, genes: Tensor) -> Moments:
    """Moments of eta for cell `cells[k]` with gene `genes[k]`, (pairs,)."""
    cell, gene = q.cell_mean[cells], q.gene_mean[genes]
    u, v = extend(cell), extend(gene)
    diagonal = q.gene_diagonal(q.predictive_sigma)[genes]
    mean = q.mu + gene[:, 0] + (cell * v).sum(1)
    from_gene = (diagonal * (u @ q.gene_basis).square()).sum(1)
    return Moments(mean, from_gene + ((v @ q.cell_cov) * v).sum(1) + diagonal @ _basis_spread(q))


class BlockPredictor:
    """Moments of eta for blocks of cells by all genes; what depends on genes alone is computed once.

    Parameters
    ----------
    q
        The posterior.
    sigma
        Noise under which the genes' covariances are taken, (m,).
    dtype
        Precision of the blocks.
    """

    def __init__(self, q: Posterior, sigma: Tensor, dtype: torch.dtype = torch.float32) -> None:
        v = extend(q.gene_mean)
        diagonal = q.gene_diagonal(sigma)
        self._q, self._dtype = q, dtype
        self._slopes = v.T.to(dtype)
        self._intercept = (q.mu + q.gene_mean[:, 0]).to(dtype)
        self._diagonal = diagonal.T.to(dtype)
        self.from_cells = ((v @ q.cell_cov) * v).sum(1).to(dtype)  # (m,): v' S v
        self.product = (diagonal @ _basis_spread(q)).to(dtype)  # (m,): tr(S_AA T_BB)

    def mean(self, cells: slice) -> Tensor:
        """Expected eta, (cells, m)."""
        return torch.addmm(self._intercept, self._q.cell_mean[cells].to(self._dtype), self._slopes)

    def from_genes(self, cells: slice) -> Tensor:
        """u' T_j u, (cells, m)."""
        u = extend(self._q.cell_mean[cells]) @ self._q.gene_basis
        return u.square().to(self._dtype) @ self._diagonal

    def moments(self, cells: slice) -> Moments:
        """Mean and variance of eta, (cells, m) each."""
        return Moments(self.mean(cells), self.from_genes(cells) + (self.from_cells + self.product))


def _basis_spread(q: Posterior) -> Tensor:
    """k such that tr(S_AA T_BB,j) = diagonal_j . k, (r+1,)."""
    factors = q.gene_basis[1:]
    return ((q.cell_cov[1:, 1:] @ factors) * factors).sum(0)
