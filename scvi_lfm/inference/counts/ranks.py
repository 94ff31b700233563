"""Fewer factors: a part of the state of a count fit, and the lower bound of every smaller rank.

Where size factors are total counts, margins alone have no use for the activity of cells: its prior scale falls to next
to nothing, and what the totals hold of the factors returns as one more factor, whose loadings are alike in all genes.
So factors are ordered by their loadings around the mean, and what is dropped leaves its mean to the activity. Every
number of factors is measured in that order, the whole one too: the rotation is not that of highest bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ...linalg.packed import unpack
from ...posterior.gauge import balance, translate_genes
from ..ranks import GENE_STEPS, RankCurve, effective_factors, rank_curve
from ..state import factor_columns
from .gene_step import gene_step
from .objective import elbo_per_entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...posterior.gauge import Move
    from .objective import EntrySample
    from .state import Cells, CountGlobals, CountProblem, CountStatistics

    _Leading = tuple[CountGlobals, Cells, CountStatistics]


def count_curve(
    problem: CountProblem,
    g: CountGlobals,
    cells: Cells,
    statistics: CountStatistics,
    sample: EntrySample,
    seed: int,
    score: Callable[[CountGlobals, Cells], float] | None = None,
) -> RankCurve:
    """The lower bound of the leading k factors for every k, measured in the cells of a block.

    What cells say of the factors stays, at the rates that they have with all of them. Entries and random numbers are
    the same for every rank. `score` gives the log density of held-out entries.
    """
    r, width = g.n_factors, cells.mean.shape[1]
    state = activity_last(problem, g, cells, statistics)
    effective = effective_factors(state[2].xx, unpack(state[1].cov.double().mean(0)), r)

    def bound(state: _Leading) -> float:
        g, cells, _ = state
        return elbo_per_entry(problem, g, cells, (g.cell_prior, g.gene_prior), sample, seed, width=width)

    def density(state: _Leading) -> float:
        return cast("Callable", score)(*state[:2])

    def fewer(state: _Leading, k: int) -> _Leading:
        return leading_factors(problem, *state, k)

    return rank_curve(state, r, effective, fewer, bound, None if score is None else density)


def leading_factors(
    problem: CountProblem, g: CountGlobals, cells: Cells, statistics: CountStatistics, n_factors: int
) -> tuple[CountGlobals, Cells, CountStatistics]:
    """The leading factors alone, and the genes fitted to what cells say of them.

    The mean loadings of the others, times their A, go to the activity of the cells.
    """
    order, p = torch.arange(g.n_factors, device=g.mu.device), g.n_known
    if "a" not in g.scales.fixed:
        g, cells, statistics = _moved(problem, g, cells, statistics, _to_activity(g, statistics, order >= n_factors))
    on = order[:n_factors]
    g, cells = g.at_factors(on), cells.at_factors(on, p)
    statistics = statistics.at_columns(factor_columns(2 + p, on))
    for _ in range(GENE_STEPS):
        g = gene_step(problem, g, statistics)
    return g, cells, statistics


def activity_last(
    problem: CountProblem, g: CountGlobals, cells: Cells, statistics: CountStatistics
) -> tuple[CountGlobals, Cells, CountStatistics]:
    """State in the rotation that puts those factors first whose loadings differ most between genes."""
    if not (problem.rotates and g.n_factors) or "a" in g.scales.fixed:
        return g, cells, statistics
    p = g.n_known
    around_means = g.moved(_to_activity(g, statistics, torch.ones_like(g.scales.A, dtype=torch.bool)))
    of_cells = statistics.xx[2 + p :, 2 + p :] / torch.outer(g.scales.A, g.scales.A)
    move = balance(of_cells, around_means.second_moment()[2 + p :, 2 + p :], p)
    return _moved(problem, g, cells, statistics, move)


def _to_activity(g: CountGlobals, statistics: CountStatistics, which: Tensor) -> Move:
    """Move of the mean loadings of some factors, `which` (r,), by the weight of the counts, to the activity."""
    weight = statistics.weighted[:, 0].double()
    means = weight @ g.gene_mean[:, 1 + g.n_known :].double() / weight.sum()
    return translate_genes(torch.where(which, means, 0.0), g.n_known)


def _moved(
    problem: CountProblem, g: CountGlobals, cells: Cells, statistics: CountStatistics, move: Move
) -> tuple[CountGlobals, Cells, CountStatistics]:
    """State after a gauge move, with the prior scales at their best for it."""
    g, statistics = g.moved(move).in_family(problem.family), statistics.moved(move)
    return g.with_scales_learned(statistics.xx[1, 1]), cells.moved(move, problem.family), statistics
