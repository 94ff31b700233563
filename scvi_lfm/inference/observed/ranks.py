r"""Fewer factors where some entries are not data: a part of the state, and the lower bound of every smaller rank.

What cells say of the factors is kept; the covariance of the leading k latents of a cell is a part of :math:`S_i`, whose
log determinant a Cholesky factor holds for every k. Genes, noise and scales are solved for anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from ...linalg.packed import ROWS_PER_BLOCK, packed_size, unpack
from ...posterior.held_out import score_held_out
from ..ranks import GENE_STEPS, RankCurve, effective_factors, rank_curve
from ..state import factor_columns
from .finish import as_posterior
from .start import statistics_of
from .state import Rows
from .steps import CellStep, elbo, expected_squares, gene_step

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import HeldOut
    from ...data.blocks import Blocks
    from ..state import Problem
    from .state import ObservedGlobals, ObservedStatistics

    _Leading = tuple[ObservedGlobals, ObservedStatistics]


def observed_curve(problem: Problem, g: ObservedGlobals, blocks: Blocks, held_out: HeldOut | None) -> RankCurve:
    """The curve from one step of all cells under the genes of the fit."""
    statistics, parts = statistics_of(CellStep.of(g, problem.family), blocks)
    cells = Rows.joined(parts)
    log_dets = leading_log_dets(cells.cov)
    effective = effective_factors(statistics.xx, unpack(cells.cov.mean(0, dtype=torch.float64)), g.n_factors)

    def fewer(state: _Leading, k: int) -> _Leading:
        return leading_factors(problem, state[0], replace(state[1], log_det=log_dets[k]), k)

    def bound(state: _Leading) -> float:
        return float(elbo(problem, *state, expected_squares(*state))) / problem.n_entries

    def score(state: _Leading) -> float:
        k = state[0].n_factors
        some = Rows(cells.mean[:, : k + 1], cells.cov[:, : packed_size(k + 1)], log_dets[k])
        return score_held_out(as_posterior(state[0], some), cast("HeldOut", held_out)).means[0]

    return rank_curve((g, statistics), g.n_factors, effective, fewer, bound, score if held_out is not None else None)


def leading_factors(
    problem: Problem, g: ObservedGlobals, statistics: ObservedStatistics, n_factors: int
) -> tuple[ObservedGlobals, ObservedStatistics]:
    """The leading factors alone, and the genes fitted to what cells say of them; `log_det` is the caller's to set."""
    kept = torch.arange(n_factors, device=g.mu.device)
    g, statistics = g.at_factors(kept), statistics.at_columns(factor_columns(2, kept))
    for _ in range(GENE_STEPS):
        g, _ = gene_step(problem, g, statistics)
    return g, statistics


def leading_log_dets(cov: Tensor) -> Tensor:
    """Means over rows of the log determinants of the leading 1, ..., k rows and columns, from packed (rows, p)."""
    total = cov.new_zeros((), dtype=torch.float64)
    for part in cov.split(ROWS_PER_BLOCK):
        factor = torch.linalg.cholesky(unpack(part.double()))
        total = total + 2 * factor.diagonal(dim1=-2, dim2=-1).log().cumsum(1).sum(0)
    return total / len(cov)
