r"""Closed-form steps for the Normal likelihood where only some entries are data, :math:`o_{ij} = 1`, else 0.

.. math::

    S_i^{-1} &= \mathrm{diag}(1/\kappa_a^2, 1/\kappa_A^2) + \sum_j o_{ij} w_j E[v_j v_j'] \\
    (a_i, A_i) &= S_i \sum_j o_{ij} w_j \left( (y_{ij} - \mu) v_j - E[b_j v_j] \right) \\
    T_j^{-1} &= \mathrm{diag}(1/\kappa_b^2, 1/\kappa_B^2) + w_j \sum_i o_{ij} E[u_i u_i'] \\
    (b_j, B_j) &= T_j w_j \sum_i o_{ij} \left( (y_{ij} - \mu) u_i - E[a_i u_i] \right)

The sums over observed entries of all rows are one product of the pattern with packed matrices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...data import Scaled, column_sums
from ...linalg.moments import one_first
from ...linalg.packed import diagonal, doubled, first_column, inner, outer, slope_moments, unpack
from ...model.likelihoods import normal
from ...model.priors import MU_SCALE, kl_of_mu
from ...posterior.posterior import extend
from ..equations import solve_rows
from .noise import update_noise
from .state import ObservedStatistics, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ...data import Batch
    from ...model import Gaussian
    from ..state import Problem
    from .state import ObservedGlobals

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
        self._slopes = Scaled(weight * v)
        # packed w_j E[v v'] in the precision of the covariances, w_j E[b v] in that of the means
        self._second = slope_moments(v.to(gene_cov.dtype), gene_cov, precision.to(gene_cov.dtype))
        with_abundance = gene_cov[:, self._with_one].to(v.dtype)
        with_abundance[:, 0] = 0  # b meets the 1 of v, which has no variance
        self._products = weight * with_abundance.addcmul_(gene_mean[:, :1], v)

    @classmethod
    def of(cls, g: ObservedGlobals, family: str) -> CellStep:
        """Local step under the current genes."""
        return cls(g.mu, g.gene_mean, g.gene_cov, g.precision, g.cell_prior, family)

    def __call__(self, batch: Batch) -> Rows:
        """q(a, A) of the cells of a block."""
        information = batch.observed_times_genes(self._second)
        products = batch.observed_times_genes(self._products)
        target = batch.times_genes(self._slopes) - self._mu * information[:, self._with_one] - products
        return Rows.of(solve_rows(information, target, self._prior, self._family))


def mean_moment(blocks: Sequence[Rows]) -> Tensor:
    """Mean of E[x x'] over the cells of some blocks, (r+2, r+2) in float64."""
    return torch.stack([_moment(cells) for cells in blocks]).sum(0) / sum(len(cells.mean) for cells in blocks)


def _moment(cells: Rows) -> Tensor:
    x = one_first(cells.mean)
    moment = x.T @ x
    moment[1:, 1:] += unpack(column_sums(cells.cov))
    return moment


def cell_statistics(batch: Batch, cells: Rows) -> ObservedStatistics:
    """Averages over the cells of a block."""
    n, k = cells.mean.shape
    x = one_first(cells.mean)
    products = outer(x.to(cells.cov.dtype))
    products.index_add_(1, inner(k + 1, x.device), cells.cov)
    weighted = batch.observed_times_cells(products)
    # float32 has numbers of cells exactly, and not sums of their shares
    weighted = weighted / n if batch.observed is None else weighted.div_(n)
    return ObservedStatistics(
        mean_moment([cells]), weighted, batch.times_cells(x) / n, batch.square_sums / n, cells.log_det / n
    )


def gene_step(problem: Problem, g: ObservedGlobals, statistics: ObservedStatistics) -> tuple[ObservedGlobals, Tensor]:
    """The global step: genes, mu, noise and scales; also the mean over cells of o E (y - eta)^2 of each gene, (m,)."""
    g, squares = update_genes_and_mu(problem, g, statistics)
    g = update_noise(problem, g, statistics, squares)
    return g.with_scales_learned(statistics.xx[1, 1]), squares


def update_genes_and_mu(
    problem: Problem, g: ObservedGlobals, statistics: ObservedStatistics
) -> tuple[ObservedGlobals, Tensor]:
    """q(b, B), then q(mu), given the cells; also the mean over cells of o E (y - eta)^2 of each gene, (m,)."""
    g, explained = update_genes(problem, g, statistics)
    g = update_mu(g, statistics, problem.n_cells)
    return g, expected_squares(g, statistics, explained)


def update_genes(
    problem: Problem, g: ObservedGlobals, statistics: ObservedStatistics
) -> tuple[ObservedGlobals, Tensor]:
    r"""q(b, B) given the cells, and what it explains of each gene, (m,).

    With :math:`G_j = \sum_i o_{ij} E[u_i u_i']`, :math:`h_j` the right side above with its weight, P the
    prior's covariance and :math:`\gamma_j = (b_j, B_j)` of length k, the equations themselves give

    .. math:: \frac1n E[\gamma_j' G_j \gamma_j] = \frac{\gamma_j' h_j + k - E[\gamma_j' P^{-1} \gamma_j]}{n w_j}
    """
    target = statistics.right_side(g.mu)
    weight, prior_var = problem.n_cells * g.precision, g.scales.gene_var
    part = statistics.uu_part
    genes = Rows.of(solve_rows(statistics.weighted, target, g.gene_prior, problem.family, weight=weight, part=part))
    of_prior = (genes.mean.square() + diagonal(genes.cov)) / prior_var
    explained = (genes.mean * target).sum(1) + (1 - of_prior).sum(1) / weight
    explained = torch.where(statistics.observed() > 0, explained, 0.0)
    return replace(g, gene_mean=genes.mean, gene_cov=genes.cov, gene_log_det=genes.log_det), explained


def update_mu(g: ObservedGlobals, statistics: ObservedStatistics, n_cells: int) -> ObservedGlobals:
    """q(mu) given everything else."""
    with_one, with_activity = statistics.margins
    residual = statistics.response[:, 0] - (with_one * g.gene_mean).sum(1) - with_activity[:, 0]
    var = 1 / (MU_SCALE**-2 + n_cells * (g.precision @ statistics.observed()))
    return replace(g, mu=var * n_cells * (g.precision @ residual), mu_var=var)


def expected_squares(g: ObservedGlobals, statistics: ObservedStatistics, explained: Tensor | None = None) -> Tensor:
    """`mean_i o_ij E (y_ij - eta_ij)^2` of each gene, (m,) in float64.

    `explained` is what :func:`update_genes` tells where q(b, B) is new; otherwise it is summed from all triangles.
    """
    gamma, mu_square = g.gene_mean, g.mu.square() + g.mu_var
    explained = explained_by_genes(g, statistics) if explained is None else explained
    with_one, with_activity = statistics.margins
    yx, activity_square = statistics.response, statistics.weighted[:, 2].double()
    response = g.mu * yx[:, 0] + yx[:, 1] + gamma[:, 0] * yx[:, 0] + (gamma[:, 1:] * yx[:, 2:]).sum(1)
    others = mu_square * with_one[:, 0] + 2 * g.mu * with_activity[:, 0] + activity_square
    crossed = (gamma * (g.mu * with_one + with_activity)).sum(1)
    return statistics.yy - 2 * response + others + 2 * crossed + explained


def explained_by_genes(g: ObservedGlobals, statistics: ObservedStatistics) -> Tensor:
    """`mean_i o_ij E ((b_j, B_j) . u_i)^2` of each gene, (m,) in float64."""
    k, parts = g.gene_mean.shape[1], []
    twice, varies = doubled(k, g.gene_mean), statistics.uu_part
    blocks = (values.split(GENES_PER_BLOCK) for values in (g.gene_mean, g.gene_cov, statistics.weighted))
    for gamma, cov, weighted in zip(*blocks, strict=True):
        parts.append(outer(gamma).add_(cov).mul_(weighted[:, varies]) @ twice)
    return torch.cat(parts)


def elbo(problem: Problem, g: ObservedGlobals, statistics: ObservedStatistics, squares: Tensor) -> Tensor:
    """ELBO of the whole data set, from averages over cells."""
    return problem.n_cells * local_elbo(g, statistics, squares) - global_kl(g)


def local_elbo(g: ObservedGlobals, statistics: ObservedStatistics, squares: Tensor) -> Tensor:
    """Mean over cells of the terms that belong to a cell: its observed values, and its divergence from the prior."""
    observed = statistics.observed()
    # of one entry with the gene's mean expected square
    mean_square = squares / observed.clamp_min(torch.finfo(observed.dtype).tiny)
    data = observed @ normal.expected_log_density(mean_square, g.precision)
    prior_var = g.scales.cell_var
    moment = statistics.xx.diagonal()[1:]
    return data - 0.5 * ((moment / prior_var - 1 + prior_var.log()).sum() - statistics.log_det)


def global_kl(g: ObservedGlobals) -> Tensor:
    """KL of q(mu) and of all q(b, B) from their priors."""
    prior_var, n_genes = g.scales.gene_var, len(g.gene_mean)
    genes = n_genes * (g.gene_squares() / prior_var - 1 + prior_var.log()).sum() - g.gene_log_det
    return kl_of_mu(g.mu, g.mu_var) + 0.5 * genes
