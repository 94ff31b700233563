r"""Closed-form steps for the Normal likelihood where only some entries are data, :math:`p_{ij} = 1`, else 0.

.. math::

    S_i^{-1} &= \mathrm{diag}(1/\kappa_a^2, 1/\kappa_A^2) + \sum_j p_{ij} w_j E[v_j v_j'] \\
    (a_i, A_i) &= S_i \sum_j p_{ij} w_j \left( (y_{ij} - \mu) v_j - E[b_j v_j] \right) \\
    T_j^{-1} &= \mathrm{diag}(1/\kappa_b^2, 1/\kappa_B^2) + w_j \sum_i p_{ij} E[u_i u_i'] \\
    (b_j, B_j) &= T_j w_j \sum_i p_{ij} \left( (y_{ij} - \mu) u_i - E[a_i u_i] \right)

The sums over observed entries of all rows are one product of the pattern with packed matrices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...model import Gaussian
from ...model.likelihoods import normal
from ...model.priors import MU_SCALE
from ...posterior.packed import doubled, first_column, inner, outer, without_first
from ...posterior.posterior import extend
from ..counts.gene_step import normal_equations, without_activity
from .equations import Rows, solve_rows
from .noise import update_noise
from .state import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch
    from .state import Globals, Problem

GENES_PER_BLOCK = 2048


class CellStep:
    """The local step: exact. What depends on genes alone is computed once and serves every block of cells.

    Parameters
    ----------
    mu
        Grand mean, ().
    gene_mean
        Means of (b, B), (m, r+1).
    gene_cov
        Packed covariances of (b, B), (m, p).
    precision
        1 / sigma_j^2, (m,).
    prior
        Prior of (a, A).
    family
        Variational family.
    """

    def __init__(
        self, mu: Tensor, gene_mean: Tensor, gene_cov: Tensor, precision: Tensor, prior: Gaussian, family: str
    ) -> None:
        k = gene_mean.shape[1]
        self._mu, self._prior, self._family = mu, prior, family
        weight, v = precision[:, None], extend(gene_mean)
        self._with_one = first_column(k, gene_mean.device)
        self._slopes = weight * v
        # packed w_j E[v v'] in the precision of the covariances, w_j E[b v] in that of the means
        second = outer(v.to(gene_cov.dtype)).add_(without_first(gene_cov))
        self._second = second.mul_(weight.to(second.dtype))
        with_abundance = gene_cov[:, self._with_one].to(v.dtype)
        with_abundance[:, 0] = 0  # b meets the 1 of v, which has no variance
        self._products = weight * with_abundance.addcmul_(gene_mean[:, :1], v)

    @classmethod
    def of(cls, g: Globals, family: str) -> CellStep:
        """Under the current genes."""
        return cls(g.mu, g.gene_mean, g.gene_cov, g.precision, Gaussian.centred(g.scales.cell_var), family)

    def __call__(self, batch: Batch) -> Rows:
        """q(a, A) of the cells of a block."""
        information = batch.observed_times_genes(self._second)
        products = batch.observed_times_genes(self._products)
        target = batch.times_genes(self._slopes) - self._mu * information[:, self._with_one] - products
        return solve_rows(information, target, self._prior, self._family)


def cell_statistics(batch: Batch, cells: Rows) -> Statistics:
    """Averages over the cells of a block."""
    n, k = cells.mean.shape
    x = torch.cat([torch.ones_like(cells.mean[:, :1]), cells.mean], dim=1)
    xx = x.T @ x
    products = outer(x.to(cells.cov.dtype))
    products[:, inner(k + 1, x.device)] += cells.cov
    first, second = torch.tril_indices(k, k, device=x.device) + 1
    spread = cells.cov.sum(0, dtype=torch.float64)
    xx[first, second] += spread
    xx[second, first] += torch.where(first == second, 0.0, spread)
    weighted = batch.observed_times_cells(products)
    return Statistics(xx / n, weighted / n, batch.times_cells(x) / n, batch.square_sums / n, cells.log_det / n)


def gene_step(problem: Problem, g: Globals, statistics: Statistics) -> tuple[Globals, Tensor]:
    """The global step: genes, mu, noise and scales; also the mean over cells of p E (y - eta)^2 of each gene, (m,)."""
    g = update_mu(update_genes(problem, g, statistics), statistics, problem.n_cells)
    squares = expected_squares(g, statistics)
    g = update_noise(problem, g, statistics, squares)
    scales = g.scales.learned_from(statistics.xx[1, 1], g.gene_squares(), g.precision.reciprocal().mean())
    return replace(g, scales=scales), squares


def update_genes(problem: Problem, g: Globals, statistics: Statistics) -> Globals:
    """q(b, B) given the cells."""
    information, target = normal_equations(statistics.weighted, statistics.yx, g.mu)
    weight = (problem.n_cells * g.precision)[:, None]
    genes = solve_rows(
        information * weight.to(information.dtype), target * weight, Gaussian.centred(g.scales.gene_var), problem.family
    )
    return replace(g, gene_mean=genes.mean, gene_cov=genes.cov, gene_log_det=genes.log_det)


def update_mu(g: Globals, statistics: Statistics, n_cells: int) -> Globals:
    """q(mu) given everything else."""
    first = statistics.weighted[:, first_column(statistics.yx.shape[1], g.mu.device)].double()
    known = torch.cat([g.gene_mean[:, :1], torch.ones_like(g.gene_mean[:, :1]), g.gene_mean[:, 1:]], dim=1)
    residual = statistics.yx[:, 0] - (first * known).sum(1)
    var = 1 / (MU_SCALE**-2 + n_cells * (g.precision @ statistics.observed()))
    return replace(g, mu=var * n_cells * (g.precision @ residual), mu_var=var)


def expected_squares(g: Globals, statistics: Statistics) -> Tensor:
    """`mean_i p_ij E (y_ij - eta_ij)^2` of each gene, (m,) in float64."""
    # eta = c . x with c = (mu + b, 1, B)
    c = torch.cat([g.mu + g.gene_mean[:, :1], torch.ones_like(g.gene_mean[:, :1]), g.gene_mean[:, 1:]], dim=1)
    squares = statistics.yy - 2 * (statistics.yx * c).sum(1) + g.mu_var * statistics.observed()
    twice, varies = doubled(c.shape[1], c), without_activity(g.gene_mean.shape[1], c.device)
    parts = []
    for start in range(0, len(c), GENES_PER_BLOCK):
        genes = slice(start, start + GENES_PER_BLOCK)
        second = outer(c[genes])  # E[c c']
        second[:, varies] += g.gene_cov[genes]
        parts.append(second.mul_(statistics.weighted[genes]) @ twice)
    return squares + torch.cat(parts)


def elbo(problem: Problem, g: Globals, statistics: Statistics, squares: Tensor) -> Tensor:
    """ELBO of the whole data set, from averages over cells."""
    return problem.n_cells * local_elbo(g, statistics, squares) - global_kl(g)


def local_elbo(g: Globals, statistics: Statistics, squares: Tensor) -> Tensor:
    """Mean over cells of the terms that belong to a cell: its observed values, and its divergence from the prior."""
    observed = statistics.observed()
    # of one entry with the gene's mean expected square
    mean_square = squares / observed.clamp_min(torch.finfo(observed.dtype).tiny)
    data = observed @ normal.expected_log_density(mean_square, g.precision)
    prior_var = g.scales.cell_var
    moment = statistics.xx.diagonal()[1:]
    return data - 0.5 * ((moment / prior_var - 1 + prior_var.log()).sum() - statistics.log_det)


def global_kl(g: Globals) -> Tensor:
    """KL of q(mu) and of all q(b, B) from their priors."""
    prior_var, n_genes = g.scales.gene_var, len(g.gene_mean)
    genes = n_genes * (g.gene_squares() / prior_var - 1 + prior_var.log()).sum() - g.gene_log_det
    ratio = g.mu_var / MU_SCALE**2
    return 0.5 * (genes + ratio + (g.mu / MU_SCALE).square() - 1 - ratio.log())
