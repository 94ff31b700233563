"""Fewer factors: a part of the state of a count fit, and the lower bound of every smaller rank.

Where size factors are total counts, margins alone have no use for the activity of cells: its prior scale falls to next
to nothing, and what the totals hold of the factors returns as one more factor, whose loadings are alike in all genes.
So factors are ordered by their loadings around the mean, and what is dropped leaves its mean to the activity. Every
number of factors is measured in that order, the whole one too: the rotation is not that of highest bound.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch

from ...linalg.packed import unpack
from ...posterior.gauge import balance, translate_genes
from ..ranks import GENE_STEPS, RankCurve, effective_factors, rank_curve
from ..state import factor_columns
from .gene_step import gene_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...posterior.gauge import Move
    from .state import CountProblem, Gauged
    from .variable import Seen

S = TypeVar("S", bound="Gauged")


def count_curve(seen: Seen, state: S, seed: int, score: Callable[[S], float] | None) -> RankCurve:
    """The lower bound of the leading k factors for every k, measured in the cells of a block.

    What cells say of the factors stays, at the rates that they have with all of them. Entries and random numbers are
    the same for every rank. `score` gives the log density of held-out entries.
    """
    r, width = state.globals.n_factors, state.cells.mean.shape[1]
    state = activity_last(seen.problem, state)
    effective = effective_factors(state.statistics.xx, unpack(state.cells.cov.double().mean(0)), r)

    of_entries: list[Tensor] = []

    def bound(state: S) -> float:
        elbo, values = seen.elbo_of_entries(state.globals, state.cells, seed, width)
        of_entries.append(values)
        return elbo

    curve = rank_curve(state, r, effective, partial(leading_factors, seen.problem), bound, score)
    errors = [seen.sample.standard_error(more - fewer) for fewer, more in pairwise(of_entries[::-1])]
    return replace(curve, gain_error=[0.0, *errors])


def leading_factors(problem: CountProblem, state: S, n_factors: int) -> S:
    """The leading factors alone, and the genes fitted to what cells say of them.

    The mean loadings of the others, times their A, go to the activity of the cells.
    """
    scales, p = state.globals.scales, state.globals.n_known
    order = torch.arange(len(scales.A), device=scales.A.device)
    if "a" not in scales.fixed:
        state = _moved(problem, state, _to_activity(state, order >= n_factors))
    on = order[:n_factors]
    g, statistics = state.globals.at_factors(on), state.statistics.at_columns(factor_columns(2 + p, on))
    for _ in range(GENE_STEPS):
        g = gene_step(problem, g, statistics)
    return replace(state, globals=g, statistics=statistics, cells=state.cells.at_factors(on, p))


def activity_last(problem: CountProblem, state: S) -> S:
    """State in the rotation that puts those factors first whose loadings differ most between genes."""
    g, factors = state.globals, slice(2 + state.globals.n_known, None)
    if not (problem.rotates and g.n_factors) or "a" in g.scales.fixed:
        return state
    around_means = g.moved(_to_activity(state, torch.ones_like(g.scales.A, dtype=torch.bool)))
    of_cells = state.statistics.xx[factors, factors] / torch.outer(g.scales.A, g.scales.A)
    return _moved(problem, state, balance(of_cells, around_means.second_moment()[factors, factors], g.n_known))


def _to_activity(state: Gauged, which: Tensor) -> Move:
    """Move of the mean loadings of some factors, `which` (r,), by the weight of the counts, to the activity."""
    g, weight = state.globals, state.statistics.weighted[:, 0].double()
    means = weight @ g.gene_mean[:, 1 + g.n_known :].double() / weight.sum()
    return translate_genes(torch.where(which, means, 0.0), g.n_known)


def _moved(problem: CountProblem, state: S, move: Move) -> S:
    """State after a gauge move, with the prior scales at their best for it."""
    state = state.moved(move, problem.family)
    return replace(state, globals=state.globals.with_scales_learned(state.statistics.xx[1, 1]))
