r"""The local step: one Newton step for q(a, A) of each cell, with exact normal equations.

.. math::

    S_i^{-1} &= P^{-1} + \sum_j w_{ij} E[v_j v_j'] \\
    (a_i, A_i) &= S_i \left( P^{-1} \alpha_0 + \sum_j w_{ij} (z_{ij} - \mu) v_j - w_{ij} E[b_j v_j] \right), \qquad
    z_{ij} = \eta_{ij} - \log s_i + g_{ij} / w_{ij}
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...posterior.rates import cell_features, rates
from ..equations import solve_rows

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import Gaussian
    from ...posterior.rates import GeneFeatures
    from .state import Cells, CountProblem


def cell_step(
    problem: CountProblem,
    y: Tensor,
    cells: Cells,
    features: GeneFeatures,
    mu: Tensor,
    dispersion: Tensor,
    prior: Gaussian,
    trust: Tensor | None = None,
    observed: Tensor | None = None,
    half: Tensor | None = None,
) -> tuple[Cells, Tensor]:
    """q of the cells with counts `y` (cells, m) after one step, and what it expected to gain, in nats for each.

    `trust` (cells,) bounds the step, see :meth:`Solved.within`. `observed` (cells, m) tells which entries are data, by
    default all. `half` (cells, m), if given, is filled with half the variances of eta.
    """
    p, k = features.packed_size, features.mean.shape[1]
    left, offset = cell_features(cells.mean, cells.cov), cells.log_size + mu.to(cells.mean.dtype)
    information = cells.mean.new_zeros(len(y), p + k)
    target = cells.mean.new_zeros(len(y), k)
    for genes in features.blocks(len(y)):
        linear = features.linear(cells.mean, genes)
        half_variance = features.half_variance(left, genes)
        rate = rates(linear, half_variance, offset)
        if half is not None:
            half[:, genes] = half_variance
        weight, score = problem.likelihood.weight_and_score(y[:, genes], rate, dispersion[genes])
        weight, score = (where_observed(values, observed, genes) for values in (weight, score))
        information.addmm_(weight, features.moments[genes, p:])
        target.addmm_(score.addcmul_(weight, linear), features.slopes[genes])
    target -= information[:, p:]
    solved = solve_rows(information[:, :p], target, prior, problem.family, cells.mean)
    solved = solved.within(cells.mean, trust)
    return replace(cells, mean=solved.mean, cov=solved.cov), solved.missing


def where_observed(values: Tensor, observed: Tensor | None, genes: slice) -> Tensor:
    """The values of a block of entries, zero for those that are not data."""
    return values if observed is None else values.masked_fill(~observed[:, genes], 0)
