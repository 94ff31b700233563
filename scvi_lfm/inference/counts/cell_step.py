r"""The local step: one Newton step for q(a, A) of each cell, with exact normal equations.

.. math::

    S_i^{-1} &= P^{-1} + \sum_j w_{ij} E[v_j v_j'] \\
    (a_i, A_i) &= S_i \left( P^{-1} \alpha_0 + \sum_j w_{ij} (z_{ij} - \mu) v_j - w_{ij} E[b_j v_j] \right), \qquad
    z_{ij} = \eta_{ij} - \log s_i + g_{ij} / w_{ij}
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..._compile import fused
from ..._workers import in_order
from ...posterior.rates import rates
from ..equations import solve_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ...model import Gaussian
    from ...model.likelihoods import Likelihood
    from ...posterior.rates import GeneFeatures
    from .state import Cells, CountProblem

# Gauss-Hermite, three nodes
NODES = ((0.0, 2 / 3), (3**0.5, 1 / 6), (-(3**0.5), 1 / 6))


def cell_step(
    problem: CountProblem,
    y: Tensor,
    cells: Cells,
    features: GeneFeatures,
    mu: Tensor,
    parameters: tuple[Tensor, ...],
    prior: Gaussian,
    trust: Tensor | None = None,
    observed: Tensor | None = None,
) -> tuple[Cells, Tensor]:
    """q of the cells with counts `y` (cells, m) after one step, and what it expected to gain, in nats for each.

    `trust` (cells,) bounds the step, see :meth:`Solved.within`. `observed` (cells, m) tells which entries are data, by
    default all.
    """
    likelihood, p, k = problem.likelihood, features.packed_size, features.n_latents
    left = features.of_cells(cells.mean, cells.cov, cells.log_size + mu.to(cells.mean.dtype))
    respond = fused(working_responses, y.device)

    def of_genes(genes: slice) -> tuple[Tensor, Tensor]:
        linear, (eta, half_variance) = features.linear(left, genes), of_eta(likelihood, features, left, genes)
        some, data = at_genes(parameters, genes), None if observed is None else observed[:, genes]
        weight, response, _ = respond(likelihood, y[:, genes], linear, eta, half_variance, some, data)
        return weight @ features.equations[genes], response @ features.slopes(genes)

    information = cells.mean.new_zeros(len(y), features.equations.shape[1])
    target = cells.mean.new_zeros(len(y), k)
    for of_some in in_order(of_genes, features.blocks(len(y))):
        information, target = information.add_(of_some[0]), target.add_(of_some[1])
    target -= information[:, p : p + k]
    solved = solve_rows(information[:, :p], target, prior, problem.family, cells.mean)
    solved = solved.within(cells.mean, trust)
    if likelihood.has_rate:
        solved = solved.damped(cells.cov)
    return replace(cells, mean=solved.mean, cov=solved.cov), solved.missing


def of_eta(likelihood: Likelihood, features: GeneFeatures, cells: Tensor, genes: slice) -> tuple[Tensor, Tensor | None]:
    """Logs of expected rates, or means of eta and half its variances where it is what the likelihood sees."""
    if likelihood.has_rate:
        return features.log_rate(cells, genes), None
    return features.eta(cells, genes), features.half_variance(cells, genes)


def where_observed(values: Tensor, observed: Tensor | None) -> Tensor:
    """The values of some entries, zero for those that are not data."""
    return values if observed is None else values * observed


def at_genes(parameters: tuple[Tensor, ...], genes: slice | Tensor) -> tuple[Tensor, ...]:
    """Parameters of the likelihood in some genes, from one for each gene (m,) or one for all ()."""
    return tuple(parameter[genes] if parameter.ndim else parameter for parameter in parameters)


def working_responses(
    likelihood: Likelihood,
    y: Tensor,
    linear: Tensor,
    eta: Tensor,
    half_variance: Tensor | None,
    parameters: tuple[Tensor, ...],
    observed: Tensor | None = None,
    mu: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fisher weights w, `w z` less what of the offset is in it, and what the likelihood sees of eta, (cells, genes).

    That is all of the offset, or all but `mu`. Entries that are not data weigh nothing. `linear` and `eta`, which is
    that of :func:`of_eta`, are lost.
    """
    weight, score, seen = expected_steps(likelihood, y, eta, half_variance, parameters, observed)
    weight, score = where_observed(weight, observed), where_observed(score, observed)
    without_offset = linear if mu is None else linear.add_(mu)
    return weight, score.addcmul_(weight, without_offset), seen


def expected_steps(
    likelihood: Likelihood,
    y: Tensor,
    eta: Tensor,
    half_variance: Tensor | None,
    parameters: tuple[Tensor, ...],
    observed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fisher weights and scores under q, and what the likelihood sees of eta, (cells, genes) each.

    Both are taken at the expected rate, or averaged over eta by Gauss-Hermite quadrature. On the CPU that is done of
    those entries alone that are data, as `observed` (cells, genes) tells, and the others get zeros; a GPU would wait
    until they are found.
    """
    if half_variance is None:
        rate = rates(eta)
        return *likelihood.weight_and_score(y, rate, *parameters), rate
    if observed is None or eta.device.type != "cpu":
        return *_averaged(likelihood, y, eta, half_variance, parameters), eta
    at, nothing = torch.nonzero(observed, as_tuple=True), torch.zeros_like(eta)
    weight, score = _averaged(likelihood, y[at], eta[at], half_variance[at], parameters)
    return nothing.index_put(at, weight), nothing.index_put(at, score), eta


def _averaged(
    likelihood: Likelihood, y: Tensor, eta: Tensor, half_variance: Tensor, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Fisher weights and scores over nodes of eta."""
    weight, score = torch.zeros_like(eta), torch.zeros_like(eta)
    for share, node in nodes_of(eta, half_variance):
        at_node = likelihood.weight_and_score(y, node, *parameters)
        weight, score = weight.add_(at_node[0], alpha=share), score.add_(at_node[1], alpha=share)
    return weight, score


def nodes_of(mean: Tensor, half_variance: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Nodes of eta and their shares: exact for polynomials of degree five."""
    sd = (2 * half_variance).clamp_min(0).sqrt()
    for at, share in NODES:
        yield share, torch.addcmul(mean, sd, sd.new_full((), at))
