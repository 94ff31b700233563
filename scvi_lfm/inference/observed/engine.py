"""The natural-gradient engine where some entries are not data: all cells at once, or by minibatches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..._workers import even_slices
from ...data.blocks import Blocks
from ...posterior.held_out import NOTHING, score_held_out
from ..course import WHOLE
from ..engine import Engine
from ..learning_rate import learning_rate
from ..normal.finish import used_factors
from ..normal.start import first_factors
from ..state import Problem
from .centre import centred
from .finish import as_posterior, finish
from .ranks import leading_factors, observed_curve
from .start import add_factors, average_of, fit_margins, left_over, statistics_of
from .state import Rows
from .steps import CellStep, elbo, expected_squares, gene_step, global_kl, local_elbo, mean_moment

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from ...data import CellMatrix
    from ...posterior.held_out import Score
    from ..course import Pass, Place
    from ..options import FitOptions, FitResult
    from ..progress import Progress
    from ..ranks import RankCurve
    from ..trace import Trace
    from .state import ObservedGlobals, ObservedStatistics

# sums over the cells of a block go by pairs of latents, so that a block is large; four of them, where cells are few
CELLS_PER_BLOCK, BLOCKS, LEAST_CELLS = 4096, 4, 256
# sweeps in which all factors count as relevant
WIDE_SWEEPS = 3


@dataclass(frozen=True)
class State:
    """Everything between two epochs, in one gauge."""

    globals: ObservedGlobals
    statistics: ObservedStatistics
    steps: int
    score: Score = NOTHING  # of held-out entries, in the last epoch


class ObservedEngine(Engine["State"]):
    """Closed forms from observed entries; the gauge is moved once an epoch."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        self._original = matrix
        matrix, self._centre = centred(matrix)
        super().__init__(matrix, options, Problem.of(matrix, options), options.dtype)

    def _prepare(self, dtype: torch.dtype) -> None:
        super()._prepare(dtype)
        one_batch = self.n_batches == 1
        self._blocks = _in_blocks(self._matrix, self._options.device, dtype, last=one_batch)

    def _noise(self, state: State) -> tuple[Tensor, Tensor]:
        return state.globals.precision, state.statistics.mean_square

    def _first_state(self) -> tuple[State, float]:
        problem, options = self._problem, self._options
        blocks, matrix = self._blocks, self._matrix
        if self.n_batches > 1:
            matrix = self._matrix.at_cells(self._batches.first_rows())
            blocks = _in_blocks(matrix, options.device, self._dtype, last=True)
        g, activity, rank0 = fit_margins(problem, blocks, options.prior_scales)
        factors = torch.empty(matrix.shape[0], 0, dtype=torch.float64, device=options.device)
        if options.n_factors:
            a = torch.cat([rows.mean[:, 0] for rows in activity]).cpu().numpy()
            factors = first_factors(left_over(matrix, g, a), options.n_factors, options.device, options.seed)
        g, statistics = add_factors(problem, g, blocks, activity, factors, options.prior_scales)
        for _ in range(WIDE_SWEEPS if options.n_factors else 0):
            wide = g.scales.B
            statistics, _ = statistics_of(CellStep.of(g, problem.family), blocks)
            state = self._in_best_gauge(State(g, statistics, 1))
            g = replace(state.globals, scales=replace(g.scales, B=wide))
            statistics = state.statistics
            g, _ = gene_step(problem, g, statistics)
        return State(g, statistics, 1), rank0

    def _in_best_gauge(self, state: State) -> State:
        move, scales = self._best_move(state.globals, state.statistics.xx)
        g = replace(state.globals.moved(move), scales=scales)
        return replace(state, globals=g, statistics=state.statistics.moved(move))

    def epoch(
        self, state: State, number: int, bar: Progress, _: object = None, pass_: Pass[State] = WHOLE
    ) -> tuple[State, list[float]]:
        """An epoch of every cell once, and the gauge of highest ELBO; the ELBO per observed entry."""
        if self.n_batches == 1:
            return self._sweep(state, bar)
        state = state if pass_.n_seen else replace(state, score=NOTHING)
        at = pass_.through(state, self._batches.visits(pass_.n_seen), self._step, bar)
        elbo = float(at.sums) * self._problem.n_cells / self._problem.n_entries
        return self._in_best_gauge(at.state), [elbo * self.n_batches / at.n_seen]

    def _sweep(self, state: State, bar: Progress) -> tuple[State, list[float]]:
        """Coordinate ascent: cells, gauge, genes. The genes are solved for anew, so only cells need to be moved."""
        problem, held_out = self._problem, self._matrix.held_out
        step = CellStep.of(state.globals, problem.family)
        cells = list(self._blocks.each(step))
        move, scales = self._best_move(state.globals, mean_moment(cells))
        cells = [rows.moved(move) for rows in cells]
        g = replace(state.globals, mu=state.globals.mu + move.mu_shift, scales=scales)
        statistics = average_of(self._blocks, cells)
        g, squares = gene_step(problem, g, statistics)
        score = NOTHING
        if held_out is not None:
            score = score_held_out(as_posterior(g, Rows.joined(cells), on_device=True), held_out)
        value = float(elbo(problem, g, statistics, squares)) / problem.n_entries
        bar.update()
        return State(g, statistics, state.steps + 1, score), [value]

    def _step(self, at: Place[State], minibatch: tuple[np.ndarray, Blocks]) -> Callable[[], Place[State]]:
        """A stochastic step; each cell's share of the ELBO is taken when it is visited, so that one epoch has all."""
        problem, state, (rows, blocks) = self._problem, at.state, minibatch
        g, score, held_out = state.globals, state.score, self._matrix.held_out
        new, cells = statistics_of(CellStep.of(g, problem.family), blocks)
        if held_out is not None:
            q = as_posterior(g, Rows.joined(cells), on_device=True)
            score = score.plus(score_held_out(q, held_out.rows(rows)))
        share = self._estimate(g, new) * len(rows) / problem.n_cells
        statistics = state.statistics.blend(new, learning_rate(state.steps))
        g, _ = gene_step(problem, g, statistics)
        state = State(g, statistics, state.steps + 1, score)
        return partial(at.after, state, share if at.sums is None else at.sums + share)

    def _estimate(self, g: ObservedGlobals, statistics: ObservedStatistics) -> Tensor:
        """ELBO per cell, from the cells of one batch."""
        return local_elbo(g, statistics, expected_squares(g, statistics)) - global_kl(g) / self._problem.n_cells

    def held_out(self, state: State) -> Score | None:
        """Score of the entries held out, in the last epoch; by minibatches, when their cells were visited."""
        return None if self._matrix.held_out is None else state.score

    def ranks(self, state: State) -> RankCurve:
        """The ELBO per observed entry of the leading k factors, for every k."""
        g = self._in_best_gauge(state).globals
        return observed_curve(self._problem, g, self._blocks, self._matrix.held_out)

    def leading(self, state: State, n_factors: int) -> State:
        """The state with its leading factors alone."""
        state = self._in_best_gauge(state)
        g, statistics = leading_factors(self._problem, state.globals, state.statistics, n_factors)
        return replace(state, globals=g, statistics=statistics)

    def finish(self, state: State, trace: Trace) -> FitResult:
        """The result, after factors that are off are dropped."""
        state = self._in_best_gauge(state)
        g, statistics = state.globals, state.statistics
        norms = g.second_moment().diagonal()[2:]
        explained = statistics.xx.diagonal()[2:] * (statistics.observed() @ g.gene_mean[:, 1:].square())
        g = g.at_factors(used_factors(norms, explained, g.precision))
        return finish(self._problem, g, self._blocks, self._original, self._centre, trace)


def _in_blocks(matrix: CellMatrix, device: torch.device, dtype: torch.dtype, *, last: bool) -> Blocks:
    n = matrix.shape[0]
    count = max(-(-n // CELLS_PER_BLOCK), min(BLOCKS, n // LEAST_CELLS), 1)
    return Blocks(matrix, even_slices(n, count), device, dtype, last=last)
