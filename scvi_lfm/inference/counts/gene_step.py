r"""The global step: q(b, B), the dispersions and the prior scales, from running averages over cells.

.. math::

    T_j^{-1} &= P^{-1} + \sum_i w_{ij} E[u_i u_i'] \\
    (b_j, B_j) &= T_j \left( \sum_i w_{ij} (z_{ij} - \mu) u_i - w_{ij} E[a_i u_i] \right)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...model import Gaussian
from ...posterior.packed import outer, unpack
from ...posterior.rates import cell_features, rates
from .dispersion import update_dispersion
from .equations import solve_rows
from .state import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from ...posterior.rates import GeneFeatures
    from .equations import Solved
    from .state import Cells, Globals, Problem

MOST_LEVERAGE = 0.9


def cell_statistics(
    problem: Problem, g: Globals, features: GeneFeatures, y: Tensor, cells: Cells, every: int = 1
) -> Statistics:
    """Averages over the cells with counts `y` (cells, m), at the rates of their q and the genes'.

    What the dispersion needs is taken from one in `every` cells: it costs as much as all the rest.
    """
    likelihood, n = problem.likelihood, len(y)
    mu = g.mu.to(cells.mean.dtype)
    left, offset = cell_features(cells.mean, cells.cov), cells.log_size + mu
    x = torch.cat([torch.ones_like(cells.mean[:, :1]), cells.mean], dim=1)
    xx = outer(x)
    xx[:, _inner(x.shape[1], x.device)] += cells.cov
    m = problem.n_genes
    weighted, response = x.new_empty(m, xx.shape[1]), x.new_empty(m, x.shape[1])
    excess, square = x.new_zeros(m), x.new_zeros(m)
    for genes in features.blocks(n):
        linear, half_variance = features.linear(cells.mean, genes), features.half_variance(left, genes)
        rate = rates(linear, half_variance, offset)
        weight, score = likelihood.weight_and_score(y[:, genes], rate, g.dispersion[genes])
        if likelihood.LEARNS_DISPERSION:
            phi, some = g.dispersion[genes], weight[::every]
            share = n / len(some)
            square[genes] = some.square().sum(0) * share
            leverage = (2 * half_variance[::every] * some).clamp_(max=MOST_LEVERAGE)
            pull = likelihood.dispersion_score(y[::every, genes], rate[::every], phi).to(phi)
            excess[genes] = phi * square[genes] + share * (2 * (1 + phi) * pull + leverage.mul_(some).sum(0))
        torch.mm(weight.T, xx, out=weighted[genes])
        torch.mm(score.addcmul_(weight, linear.add_(mu)).T, x, out=response[genes])
    mean_xx = unpack(xx.double().mean(0))
    for total in (weighted, response, excess, square):
        total /= n
    return Statistics(mean_xx, weighted, response, excess, square)


def _inner(k: int, device: torch.device) -> Tensor:
    """Positions in a packed (k, k) matrix of the part without its first row and column, in packed order."""
    rows, columns = torch.tril_indices(k - 1, k - 1, device=device) + 1
    return rows * (rows + 1) // 2 + columns


def gene_step(problem: Problem, g: Globals, statistics: Statistics) -> Globals:
    """q(b, B), dispersions and scales given the statistics of the cells."""
    return with_genes(problem, g, statistics, solve_genes(problem, g, statistics))


def with_genes(problem: Problem, g: Globals, statistics: Statistics, solved: Solved) -> Globals:
    """With q(b, B) as solved, and the dispersions and scales that follow."""
    g = replace(g, gene_mean=solved.mean, gene_cov=solved.cov, dispersion=dispersions(problem, g, statistics))
    scales = g.scales.learned_from(statistics.xx[1, 1], g.gene_squares(), g.noise_var)
    return replace(g, scales=scales)


def solve_genes(problem: Problem, g: Globals, statistics: Statistics, trust: Tensor | None = None) -> Solved:
    """q(b, B) of each gene given the statistics of the cells, moving no further than `trust` (m,)."""
    information, target = _equations(g, statistics, problem.n_cells)
    prior = Gaussian(torch.zeros_like(g.scales.gene_var), torch.diag(g.scales.gene_var))
    return solve_rows(information, target, prior, g.gene_mean, problem.family, trust)


def dispersions(problem: Problem, g: Globals, statistics: Statistics) -> Tensor:
    """Dispersions half way, on the log scale, to what the statistics say.

    A gene's loadings answer its dispersion, and in full steps both swing for ever.
    """
    if not problem.likelihood.LEARNS_DISPERSION:
        return g.dispersion
    return (g.dispersion * update_dispersion(statistics, problem.n_cells)).sqrt()


def _equations(g: Globals, statistics: Statistics, n_cells: int) -> tuple[Tensor, Tensor]:
    """Packed H (m, p) and h (m, r+1) of the genes, from those in x = (1, a, A) without the column of a."""
    k = g.gene_mean.shape[1]
    device = g.gene_mean.device
    x_position = torch.cat([torch.zeros(1, dtype=torch.long, device=device), torch.arange(2, k + 1, device=device)])
    rows, columns = torch.tril_indices(k, k, device=device)
    big, small = x_position[rows], x_position[columns]
    information = statistics.weighted[:, big * (big + 1) // 2 + small] * n_cells
    with_one = statistics.weighted[:, x_position * (x_position + 1) // 2]  # E[u] by weight
    higher, lower = x_position.clamp_min(1), x_position.clamp_max(1)
    with_activity = statistics.weighted[:, higher * (higher + 1) // 2 + lower]  # E[a u] by weight
    target = statistics.response[:, x_position] - g.mu.to(with_one.dtype) * with_one - with_activity
    return information, target * n_cells
