r"""Closed-form steps for the Normal likelihood with all entries observed.

The exact update of one block given the others is the natural-gradient step of length one; on running averages of the
cell statistics it is stochastic variational inference (Hoffman et al. 2013, JMLR 14:1303, section 2).

.. math::

    S^{-1} &= \mathrm{diag}(1/\kappa_a^2, 1/\kappa_A^2) + \sum_j w_j E[v_j v_j'] \\
    (a_i, A_i) &= S h_i, \quad h_i = \sum_j w_j \left( (y_{ij} - \mu) v_j - E[b_j v_j] \right) \\
    T_j^{-1} &= \mathrm{diag}(1/\kappa_b^2, 1/\kappa_B^2) + w_j G, \quad G = \sum_i E[u_i u_i'] \\
    (b_j, B_j) &= T_j h_j, \quad h_j = w_j \sum_i \left( (y_{ij} - \mu) u_i - E[a_i u_i] \right)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..._workers import for_each, in_order
from ...linalg.moments import one_first, without_columns
from ...linalg.rows import row_parts
from ...model.priors import MU_SCALE
from ..noise import noise_floor
from .state import NormalGlobals, NormalStatistics, distinct

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch
    from ...linalg.covariances import OneBasis
    from ...model import Gaussian

# one gene must not take over the fit because it is nearly constant
GENE_NOISE_FLOOR = 1e-4


def cell_precision(moment: Tensor, prior: Gaussian) -> Tensor:
    """`S^-1` (r+1, r+1) from the weighted gene moment of :meth:`NormalGlobals.weighted_moment`."""
    return torch.linalg.inv(prior.cov) + cell_information(moment, len(prior.mean))


def cell_information(moment: Tensor, k: int) -> Tensor:
    """`sum_j w_j E[v_j v_j']` of the k latents of a cell: b and, with covariates, beta are left out."""
    others = len(moment) - k
    return without_columns(without_columns(moment, 1, others).T, 1, others)


def cell_covariance(precision: Tensor, family: str) -> Tensor:
    """S of the family: the inverse of the precision, or its diagonal's for mean field."""
    return torch.diag(1 / precision.diagonal()) if family == "mean_field" else torch.linalg.inv(precision)


def cell_means(
    mu: Tensor, projected: Tensor, moment: Tensor, precision: Tensor, prior: Gaussian, known: Tensor
) -> Tensor:
    """Means of (a, A), (batch, r+1), from the data projected on the genes, `sum_j w_j y_ij v_j`.

    With covariates `known` (batch, p), `v = (1, beta, B)`, and what they explain is taken off.
    """
    p = known.shape[1]
    first, second = without_columns(moment[:2], 1, 1 + p)
    constant = mu * first + second
    offset = torch.linalg.solve(prior.cov, prior.mean)
    pull = without_columns(projected, 1, p) - constant + offset
    if p:
        pull = pull - known @ without_columns(moment[2 : 2 + p], 1, 1 + p)
        pull = pull if prior.slope is None else pull + known @ torch.linalg.solve(prior.cov, prior.slope).T
    return pull @ torch.linalg.inv(precision)


def cell_statistics(batch: Batch, cell_mean: Tensor, cov: Tensor) -> NormalStatistics:
    """Averages over the cells of a batch."""
    x = one_first(cell_mean)
    xx = x.T @ x / batch.n_cells
    xx[1:, 1:] += cov
    return NormalStatistics(xx, batch.times_cells(x / batch.n_cells), batch.square_sums / batch.n_cells)


@dataclass(frozen=True)
class CellBlock:
    """q(a, A) for the cells of a batch, optimal given the genes; covariates stand between a and A, without variance."""

    mean: Tensor  # (batch, 1+p+r)
    covs: OneBasis  # S_i
    local_elbo: Tensor  # (): mean over the batch

    @property
    def cov(self) -> Tensor:
        """Matrix S, or one whose log determinant is the mean of those of S_i, (1+p+r, 1+p+r)."""
        return self.covs.log_mean()

    def statistics(self, batch: Batch) -> NormalStatistics:
        """Averages over the cells."""
        return cell_statistics(batch, self.mean, self.cov)


def update_genes(g: NormalGlobals, statistics: NormalStatistics, n_cells: int, family: str) -> NormalGlobals:
    """q(b, B) given the cells: one eigendecomposition serves every gene."""
    prior_sd = g.scales.gene_var.sqrt()
    gram = n_cells * statistics.uu
    eig, vectors = torch.linalg.eigh(prior_sd[:, None] * gram * prior_sd)
    eig = eig.clamp_min(0)
    basis = prior_sd[:, None] * vectors
    own_basis, own_eig = basis, eig  # of the family's covariances
    if family == "mean_field":
        own_basis, own_eig = torch.diag(prior_sd), prior_sd.square() * gram.diagonal()
    constant = (g.mu * statistics.uu[0] + statistics.au) @ basis
    w, mean = distinct(g.precision)[:, None], torch.empty_like(g.gene_mean)
    alike = len(w) == 1
    diagonal = 1 / (w * own_eig + 1) if alike else torch.empty_like(mean)

    def solve(genes: slice) -> None:
        of_genes = w if alike else w[genes]
        target = (statistics.yu(genes) @ basis).sub_(constant)  # (Y'u / n - mu E[u] - E[a u]) basis
        torch.mm(target.mul_(n_cells * of_genes / (of_genes * eig + 1)), basis.T, out=mean[genes])
        if not alike:
            torch.reciprocal(of_genes * own_eig + 1, out=diagonal[genes])

    for_each(solve, row_parts(len(mean), mean.device))
    diagonal = diagonal.expand(mean.shape)
    return replace(g, gene_mean=mean, gene_basis=own_basis, gene_eig=own_eig, gene_diagonal=diagonal)


def update_mu(g: NormalGlobals, statistics: NormalStatistics, n_cells: int) -> NormalGlobals:
    """q(mu) given everything else."""
    mean_u, mean_a = statistics.uu[0], statistics.noise_xx[0, 1]
    residual = statistics.yx[:, 0] - mean_a - g.gene_mean @ mean_u
    var = 1 / (MU_SCALE**-2 + n_cells * statistics.mean_weight * g.precision.sum())
    return replace(g, mu=var * n_cells * (g.precision @ residual), mu_var=var)


def expected_squares(g: NormalGlobals, statistics: NormalStatistics) -> Tensor:
    """`mean_i omega_i E (y_ij - eta_ij)^2` of each gene, (m,); omega_i is 1 where noise is the same for all cells."""
    uu, gamma, xx = statistics.uu, g.gene_mean, statistics.noise_xx
    d = g.mu * uu[0] + statistics.au
    data = statistics.yy - 2 * (g.mu * statistics.yx[:, 0] + statistics.yx[:, 1] - gamma @ d)
    cells = statistics.mean_weight * (g.mu.square() + g.mu_var) + 2 * g.mu * xx[0, 1] + xx[1, 1]
    spread = distinct(g.gene_diagonal) @ (g.gene_basis * (uu @ g.gene_basis)).sum(0)

    def of_part(genes: slice) -> Tensor:
        # gamma' uu gamma - 2 y'u gamma
        some = gamma[genes]
        return (some @ uu).sub_(statistics.yu(genes), alpha=2).mul_(some).sum(1)

    explained = torch.cat(list(in_order(of_part, row_parts(len(gamma), gamma.device))))
    return data + cells + explained + spread


def update_noise(g: NormalGlobals, statistics: NormalStatistics, noise: str) -> NormalGlobals:
    """Noise at the ELBO's maximum: one for all genes, or one for each."""
    if "sigma" in g.scales.fixed:
        return g
    squares = expected_squares(g, statistics).clamp_min(noise_floor(statistics.mean_square))
    shared = squares.mean()
    var = squares.clamp_min(GENE_NOISE_FLOOR * shared) if noise != "shared" else shared.expand_as(squares)
    return replace(g, precision=1 / var)
