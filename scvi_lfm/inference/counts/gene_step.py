r"""The global step: q(b, B), the dispersions and the prior scales, from running averages over cells.

.. math::

    T_j^{-1} &= P^{-1} + \sum_i w_{ij} E[u_i u_i'] \\
    (b_j, B_j) &= T_j \left( \sum_i w_{ij} (z_{ij} - \mu) u_i - w_{ij} E[a_i u_i] \right)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..._compile import fused
from ..._workers import in_order, meanwhile
from ...linalg.moments import one_first
from ...linalg.packed import inner, outer, unpack, whole_lines
from ...model.likelihoods.ordinal import FAR, threshold_statistics, update_thresholds
from ..equations import solve_rows
from .cell_step import at_genes, nodes_of, of_eta, where_observed, working_responses
from .dispersion import update_dispersion
from .state import CountStatistics

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import PriorScales
    from ...posterior.rates import GeneFeatures
    from ..equations import Solved
    from .dispersion import DispersionPrior
    from .state import Cells, CountGlobals, CountProblem

MOST_LEVERAGE = 0.9
# one in so many cells of a minibatch tells about dispersions
DISPERSION_EVERY = 4
HALF_WAY = 0.5


class Asked(NamedTuple):
    """Which of some cells tell about dispersions, and how large a share of all cells is asked."""

    cells: slice | Tensor  # positions
    share: float

    @classmethod
    def one_in(cls, every: int, n_cells: int) -> Asked:
        """One in `every` cells, the first of them."""
        return cls(slice(None, None, every), len(range(0, n_cells, every)) / n_cells)


EVERYONE = Asked(slice(None), 1.0)


def cell_statistics(
    problem: CountProblem,
    g: CountGlobals,
    features: GeneFeatures,
    y: Tensor,
    cells: Cells,
    asked: Asked = EVERYONE,
    observed: Tensor | None = None,
) -> CountStatistics:
    """Averages over the cells with counts `y` (cells, m), at the rates of their q and the genes'.

    What the dispersion needs is taken from the cells that are `asked` alone: it costs as much as all the rest. Entries
    that are not data, as `observed` (cells, m) tells, weigh nothing.
    """
    likelihood, n = problem.likelihood, len(y)
    mu = g.mu.to(cells.mean.dtype)
    left = features.of_cells(cells.mean, cells.cov, cells.log_size + mu)
    of_asked = left[asked.cells]
    x = one_first(cells.mean)
    xx = outer(x)
    xx.index_add_(1, inner(x.shape[1], x.device), cells.cov)
    mean_xx, m, size = unpack(xx.double().mean(0)), problem.n_genes, xx.shape[1]
    # averages of what has a row for each gene are sums of shares
    x, xx = x / n, torch.nn.functional.pad(xx.div_(n), (0, whole_lines(size) - size))
    weighted, response = x.new_empty(m, xx.shape[1]), x.new_empty(m, x.shape[1])
    excess, square = x.new_zeros(m), x.new_zeros(m)
    respond = fused(working_responses, y.device)

    def of_genes(genes: slice) -> Tensor | None:
        # what they say of the thresholds between levels; all else is a gene's own, and put in its place
        linear, (eta, half_variance) = features.linear(left, genes), of_eta(likelihood, features, left, genes)
        parameters = at_genes(g.parameters, genes)
        data, which = y[:, genes], None if observed is None else observed[:, genes]
        weight, pull, seen = respond(likelihood, data, linear, eta, half_variance, parameters, which, mu)
        torch.mm(weight.T, xx, out=weighted[genes])
        torch.mm(pull.T, x, out=response[genes])
        data, seen, weight = (values[asked.cells] for values in (data, seen, weight))
        which = None if which is None else which[asked.cells]
        if likelihood.dispersion_score is not None and len(data):  # of a block on a cluster perhaps none is asked
            # no count at a rate of zero says nothing of the dispersion
            score = likelihood.dispersion_score(data, where_observed(seen, which), g.dispersion[genes])
            half_variance = features.half_variance(of_asked, genes)
            excess[genes], square[genes] = _of_dispersion(score, weight, half_variance, g.dispersion[genes])
        if g.levels is None:
            return None
        return _of_levels(data, seen, features.half_variance(of_asked, genes), g.levels, which)

    of_levels = [found for found in in_order(of_genes, features.blocks(n)) if found is not None]
    n_asked = n * asked.share  # not those of these cells, so that averages add up
    excess /= n_asked
    square /= n_asked
    levels = torch.stack(of_levels).sum(0) / n_asked if of_levels else None
    return CountStatistics(mean_xx, weighted[:, :size], response, excess, square, levels)


def _of_dispersion(pull: Tensor, weight: Tensor, half_variance: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over some cells, (genes,) each: what they say of the dispersion times what they know, and the latter."""
    half_leverage = torch.mul(half_variance, weight).clamp_(max=MOST_LEVERAGE / 2)
    known = weight.square().sum(0)
    return phi * known + 2 * (1 + phi) * pull.to(phi) + 2 * half_leverage.mul_(weight).sum(0), known


def _of_levels(data: Tensor, eta: Tensor, half_variance: Tensor, levels: Tensor, observed: Tensor | None) -> Tensor:
    """Sums over some cells and all their genes, those that are data: what they say of the thresholds, (K-1, 3)."""
    if observed is not None and eta.device.type == "cpu":
        at = torch.nonzero(observed, as_tuple=True)
        data, eta, half_variance = data[at], eta[at], half_variance[at]
    elif observed is not None:
        eta, half_variance = far_out(eta, half_variance, observed)
    shares = [
        share * threshold_statistics(data, node, levels[0], levels[1:]) for share, node in nodes_of(eta, half_variance)
    ]
    return torch.stack(shares).sum(0)


def far_out(eta: Tensor, half_variance: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Eta with entries that are not data so far from all thresholds that they say nothing of them."""
    return torch.where(observed, eta, FAR), half_variance * observed


def gene_step(
    problem: CountProblem, g: CountGlobals, statistics: CountStatistics, rounds: int = 1, share: float = HALF_WAY
) -> CountGlobals:
    """q(b, B), dispersions and scales given the statistics of the cells.

    Scales and q answer each other: `rounds` tells how often. Dispersions go a `share` of their way.
    """
    dispersion = meanwhile(partial(dispersions, problem, g, statistics, share))
    for _ in range(rounds - 1):
        g = replace(g, scales=_scales(g, statistics, solve_genes(problem, g, statistics)))
    solved = solve_genes(problem, g, statistics)
    return with_genes(problem, g, statistics, solved, dispersion())


def with_genes(
    problem: CountProblem, g: CountGlobals, statistics: CountStatistics, solved: Solved, dispersion: Tensor
) -> CountGlobals:
    """Globals with q(b, B) as solved, other dispersions, and the levels and scales that follow."""
    return replace(
        g,
        gene_mean=solved.mean,
        gene_cov=solved.cov,
        dispersion=dispersion,
        levels=levels_given(problem, g, statistics),
        scales=_scales(g, statistics, solved),
    )


def _scales(g: CountGlobals, statistics: CountStatistics, solved: Solved) -> PriorScales:
    return replace(g, gene_mean=solved.mean, gene_cov=solved.cov).with_scales_learned(statistics.xx[1, 1]).scales


def solve_genes(problem: CountProblem, g: CountGlobals, statistics: CountStatistics) -> Solved:
    """q(b, B) of each gene given the statistics of the cells."""
    # H (m, p) is that in x = (1, a, A) without the column of a, and equations are averages over cells
    target, part = statistics.right_side(g.mu), statistics.uu_part
    weight = target.new_full((len(target),), problem.n_cells)
    solved = solve_rows(
        statistics.weighted, target, g.gene_prior, problem.family, g.gene_mean, weight=weight, part=part
    )
    solved = solved.within(g.gene_mean)
    return solved.damped(g.gene_cov) if problem.likelihood.has_rate else solved


def dispersions(
    problem: CountProblem,
    g: CountGlobals,
    statistics: CountStatistics,
    share: float = HALF_WAY,
    prior: DispersionPrior | None = None,
) -> Tensor:
    """Dispersions a share of their way, on the log scale, to what the statistics say.

    A gene's loadings answer its dispersion, and in full steps both swing for ever.
    """
    if not problem.likelihood.learns_dispersion:
        return g.dispersion
    return g.dispersion * (update_dispersion(statistics, problem.n_cells, prior) / g.dispersion) ** share


def share_in(epoch: int) -> float:
    """The share in an epoch: half, and from the fifth less and less, for genes that swing with half steps too."""
    return min(HALF_WAY, 2 / epoch)


def levels_given(problem: CountProblem, g: CountGlobals, statistics: CountStatistics) -> Tensor | None:
    """The lowest level, and the thresholds after a scoring step, (K,); None for counts."""
    if g.levels is None or statistics.levels is None:
        return g.levels
    return torch.cat([g.levels[:1], update_thresholds(g.levels[1:], problem.n_cells * statistics.levels)])
