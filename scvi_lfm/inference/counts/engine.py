"""The natural-gradient engine for counts: an epoch of stochastic steps, then sweeps; gauge moves once an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..._workers import meanwhile
from ...data.blocks import some_cells
from ...model.likelihoods import LIKELIHOODS
from ...posterior import to_stored_gauge
from ...posterior.held_out import score_held_out
from ..course import WHOLE, Place
from ..engine import Engine
from ..normal.start import first_factors
from .first_epoch import Running, Steps, stochastic_step
from .gene_step import DISPERSION_EVERY, gene_step, share_in
from .last_step import step_of_all, without_unused
from .objective import EntrySample
from .posterior import count_posterior, stored_elbo, with_exact_cov
from .projection import project_counts
from .ranks import activity_last, count_curve, leading_factors
from .start import add_factors, fit_margins, log_ratios, log_values, standardised, with_factors
from .state import Cells, CountGlobals, CountProblem, Gauged, holds_covariances
from .sweep import sweep
from .variable import LeftOut, Seen, variable_genes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data import Batch, CellMatrix, HeldOut
    from ...posterior import CountPosterior
    from ...posterior.held_out import Score
    from ..course import Pass
    from ..minibatches import Stretch
    from ..options import FitOptions, FitResult
    from ..progress import Progress
    from ..ranks import RankCurve
    from ..trace import Trace

# cells whose factors are guessed from log values, and in which the ELBO is measured
START_CELLS = 4096
# steps at a visit where not all cells had a start, or where covariances are not kept; else one
MORE_STEPS = 2
# solves of the genes after a sweep, as their prior scales follow
ROUNDS = 2
# cells that tell about dispersions in a sweep, at the least
DISPERSION_CELLS = 1000


@dataclass(frozen=True)
class State(Gauged):
    """Everything between two epochs, in one gauge."""

    steps: int
    left_out: LeftOut | None = None  # genes that are in none of these; None: all genes are

    @property
    def running(self) -> Running:
        """What stochastic steps change, besides q of their cells."""
        return Running(self.globals, self.statistics, self.steps)

    def after(self, running: Running, cells: Cells) -> State:
        """The state after some of these steps."""
        return replace(self, **vars(running), cells=cells)


class CountEngine(Engine["State"]):
    """Fisher weights for counts: an epoch of stochastic steps, then sweeps; the gauge is moved once an epoch."""

    epochs_to_finish = 1

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        n, problem = matrix.shape[0], CountProblem.of(matrix, options, likelihood=LIKELIHOODS[options.likelihood])
        self._problem: CountProblem
        super().__init__(matrix, options, problem, torch.float32)
        self._sizes = np.zeros(n) if options.log_size is None else options.log_size
        self._log_size = torch.as_tensor(self._sizes, dtype=torch.float32, device=options.device)
        known = np.empty((n, 0)) if matrix.covariates is None else matrix.covariates
        self._known = torch.as_tensor(known, dtype=torch.float32, device=options.device)
        self._some = some_cells(n, START_CELLS, self._rng)
        self._places = torch.from_numpy(self._some).to(options.device)

    @cached_property
    def _all(self) -> Seen:
        """Genes of the fit, all of them."""
        rng = np.random.default_rng(self._options.seed)
        sample = EntrySample.draw(self._those, self._options.device, rng)
        return Seen(self._problem, self._matrix, self._batches, sample)

    @cached_property
    def _variable(self) -> np.ndarray | None:
        """Positions of the genes that epochs see; None: all."""
        leaves_out = self._problem.likelihood.has_rate and self._matrix.observed is None and self._options.n_factors
        return variable_genes(self._those, self._sizes[self._some]) if leaves_out else None

    @cached_property
    def _seen(self) -> Seen:
        """Genes that epochs see."""
        return self._all if self._variable is None else self._all.at(self._variable)

    @cached_property
    def _those(self) -> CellMatrix:
        """Cells that a fit starts from, in memory."""
        return self._matrix.at_cells(self._some)

    @cached_property
    def _those_seen(self) -> CellMatrix:
        """The genes of them that epochs see."""
        return self._those if self._variable is None else self._those.at_genes(self._variable)

    def _noise(self, state: State) -> None:
        """No noise to be lost: a rate has its own."""

    def _first_state(self) -> tuple[State, float]:
        """Margins and factors from some cells, and the ELBO per entry without factors."""
        problem, options, some = self._problem, self._options, self._some
        those, left_out = self._those, None
        # neither knows of the margins, which are fitted meanwhile
        everyone = meanwhile(lambda: self._all)
        guess = None if those.only_stored else meanwhile(self._guess)
        # each block takes cells from all over the file, which may be sorted by batch or type
        n_blocks = -(-len(some) // options.batch_size)
        parts = [np.arange(first, len(some), n_blocks) for first in range(n_blocks)]
        blocks = [partial(those.batch, part, options.device) for part in parts]
        sizes = [self._log_size[torch.from_numpy(some[part])] for part in parts]
        known = [self._known[torch.from_numpy(some[part])] for part in parts]
        g, activity = fit_margins(problem, blocks, sizes, options.prior_scales, known, options.levels)
        activity = activity.rows(torch.from_numpy(np.argsort(np.concatenate(parts))).to(activity.mean.device))
        rank0 = everyone().elbo(g, activity, options.seed)
        problem = self._seen.problem
        n, r = problem.n_cells, options.n_factors
        if self._variable is not None:
            left_out = LeftOut.of(self._variable, g)
            g = g.at(left_out.others)
            left_out = replace(left_out, elbo=rank0 - left_out.of_all(self._seen.elbo(g, activity, options.seed)))
            blocks = [partial(self._those_seen.batch, part, options.device) for part in parts]
        factors = self._guess((g, activity.mean[:, 0])) if guess is None else guess()
        begun = with_factors(activity, factors)
        first = torch.from_numpy(parts[0])
        g, statistics = add_factors(
            problem, g, factors[first], blocks[0](), activity.rows(first.to(factors.device)), options.prior_scales
        )
        mean = torch.cat([factors.new_zeros(n, 1), self._known, factors.new_zeros(n, r)], dim=1)
        cov = begun.cov.mean(0, keepdim=True)
        if holds_covariances(n, mean.shape[1]):
            cov = cov.repeat(n, 1)
        cells = Cells(mean, cov, self._log_size).put(self._places, begun)
        return State(g, statistics, cells, 1, left_out), rank0

    def _guess(self, margins: tuple[CountGlobals, Tensor] | None = None) -> Tensor:
        """A of the cells to start from, (cells, r); `margins` where only stored values are data."""
        r, some, device = self._options.n_factors, self._some, self._options.device
        if r == 0:
            return torch.zeros(len(some), 0, dtype=torch.float32, device=device)
        those = self._those_seen
        if not self._problem.likelihood.has_rate:
            logged = standardised(those, margins)
        elif margins is not None:
            logged = log_ratios(those, self._sizes[some], *margins)
        else:
            logged = log_values(those, self._sizes[some])
        return first_factors(logged, r, device, self._options.seed)

    def epoch(
        self, state: State, number: int, bar: Progress, _: object = None, pass_: Pass[State] = WHOLE
    ) -> tuple[State, list[float]]:
        """An epoch of every cell once, then the gauge of highest ELBO; the ELBO per entry."""
        state = (self._first_steps if number == 1 and self.n_batches > 1 else self._sweep)(state, number, bar, pass_)
        move, scales = self._best_move(state.globals, state.statistics.xx)
        state = state.moved(move, self._problem.family)
        state = replace(state, globals=replace(state.globals, scales=scales))
        return state, [self._elbo(state)]

    def _sweep(self, state: State, number: int, bar: Progress, pass_: Pass[State]) -> State:
        """Coordinate ascent: every cell, then the genes. After a first epoch it gains more than noisy steps do."""
        problem, g, steps = self._seen.problem, state.globals, self._n_steps(state, number)
        every = min(max(problem.n_cells // DISPERSION_CELLS, 1), DISPERSION_EVERY) if number > 1 else 1
        of_cells = pass_.over(lambda whole: whole.cells, lambda cells: replace(state, cells=cells))
        cells, statistics = sweep(problem, g, state.cells, self._seen.batches, steps, every, bar, of_cells)
        if pass_.most is not None:  # of the cells that it does not come to, what was known
            statistics = state.statistics.scaled(1 - pass_.most / self.n_batches).plus(statistics)
        return replace(
            state,
            globals=gene_step(problem, g, statistics, ROUNDS if number > 1 else 1, share_in(number)),
            statistics=statistics,
            cells=cells,
        )

    def _first_steps(self, state: State, number: int, bar: Progress, pass_: Pass[State]) -> State:
        """Stochastic steps, one at each minibatch."""
        problem, batches, n_steps = self._seen.problem, self._seen.batches, self._n_steps(state, number)

        def step(at: Place[State], minibatch: tuple[Tensor, Batch]) -> Callable[[], Place[State]]:
            rows, batch = minibatch
            cells = at.state.cells
            running, some = stochastic_step(problem, at.state.running, batch, cells.rows(rows), n_steps)
            return lambda: at.after(at.state.after(running, cells.put(rows, some)))

        def many(at: Place[State], stretch: Stretch) -> Callable[[], Place[State]]:
            rows, n_seen = torch.from_numpy(stretch.rows), at.n_seen + len(stretch.minibatches)
            cells = at.state.cells
            running, some = stretch.run(Steps(problem, at.state.running, n_steps), cells.part(rows))
            for _ in stretch.minibatches[1:]:
                bar.update()
            return lambda: Place(at.state.after(running, cells.put(rows, some)), n_seen)

        if batches.cluster is None or pass_.most is not None:
            return pass_.through(state, batches.numbered_epoch(pass_.n_seen), step, bar).state
        return pass_.through(state, batches.stretches(pass_.n_seen), many, bar).state

    def _n_steps(self, state: State, number: int) -> int:
        cold = number == 1 and len(self._some) < self._problem.n_cells
        return MORE_STEPS if cold or not state.cells.keeps_cov else 1

    def held_out(self, state: State) -> Score | None:
        """Score of the entries held out, after the last epoch; None where there are none."""
        held_out = self._matrix.held_out
        return None if held_out is None else score_held_out(self._posterior(state), held_out)

    def _posterior(self, state: Gauged) -> CountPosterior:
        return count_posterior(self._options.likelihood, state.globals, state.cells, state.statistics.xx)

    def _elbo(self, state: State) -> float:
        elbo = self._seen.elbo(state.globals, self._some_cells(state), self._options.seed)
        return elbo if state.left_out is None else state.left_out.of_all(elbo)

    def _some_cells(self, state: State) -> Cells:
        """q of the cells in which the ELBO is measured."""
        some = state.cells.rows(self._places)
        if state.cells.keeps_cov:
            return some
        return with_exact_cov(self._options.likelihood, state.globals, some, self._problem.family)

    def ranks(self, state: State) -> RankCurve:
        """The ELBO per entry of the leading k factors, for every k."""
        held_out, score = self._matrix.held_out, None
        if held_out is not None:
            score = partial(self._score, held_out.rows(self._some))
        curve = count_curve(self._seen, replace(state, cells=self._some_cells(state)), self._options.seed, score)
        return curve if state.left_out is None else state.left_out.curve_of_all(curve)

    def _score(self, held_out: HeldOut, state: Gauged) -> float:
        return score_held_out(self._posterior(state), held_out).means[0]

    def leading(self, state: State, n_factors: int) -> State:
        """The state with its leading factors alone."""
        problem = self._seen.problem
        return leading_factors(problem, activity_last(problem, state), n_factors)

    def finish(self, state: State, trace: Trace) -> FitResult:
        """A last step of all cells together, the stored gauge, and q of every cell given the genes as stored."""
        options, g, cells = self._options, state.globals, state.cells
        if state.left_out is not None:
            g = state.left_out.joined(self._seen.problem, g, cells, state.statistics, self._matrix)
        share = share_in(trace.epochs + 1)
        g, cells, statistics = step_of_all(self._problem, g, cells, self._batches, share)
        g, cells = without_unused(g, cells, statistics)
        q = to_stored_gauge(count_posterior(options.likelihood, g, cells, statistics.xx)).rounded()
        q = project_counts(self._matrix, q, options.family, Cells(q.cell_mean, q.cell_cov.packed(), self._log_size))
        elbo = stored_elbo(self._problem, q, self._places, self._log_size, self._all.sample, options.seed)
        return trace.result(q, elbo, q.factor_shares)
