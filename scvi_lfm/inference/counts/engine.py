"""The natural-gradient engine for counts: minibatches of cells, running averages, gauge moves once an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..._settings import settings
from ...model.likelihoods import COUNTS
from ...model.priors import initial_scales, rotation_is_free
from ...posterior import CountPosterior, to_stored_gauge
from ...posterior.covariances import Packed
from ...posterior.packed import packed_size
from ...posterior.posterior import CountNoise
from ...posterior.rates import GeneFeatures
from ...posterior.recomputed import Recomputed
from ..finish import OFF
from ..minibatches import Minibatches
from ..moves import best_move
from ..options import FitResult
from ..rates import learning_rate
from .cell_step import cell_step
from .gene_step import cell_statistics, gene_step
from .last_step import step_of_all
from .objective import EntrySample, elbo_per_entry
from .projection import project_counts
from .start import add_factors, first_factors, fit_margins, log_values, with_factors
from .state import Cells, Globals, Problem, Statistics, cell_prior, gene_prior

if TYPE_CHECKING:
    from tqdm.std import tqdm

    from ...data import CellMatrix
    from ..finish import Trace
    from ..options import FitOptions

# cells whose factors are guessed from log values, and in which the ELBO is measured
START_CELLS = 4096
# steps at a visit: a cell's first guess needs more, and so does one whose covariance was not kept
FIRST_STEPS, COLD_STEPS, LATER_STEPS, WITHOUT_COV_STEPS = 2, 4, 1, 2
# a factor that adds less than this to the precision of the average cell, whose prior has 1, is off
TOO_LITTLE = 1e-3
# one in so many cells of a minibatch tells about dispersions
DISPERSION_EVERY = 4


@dataclass(frozen=True)
class State:
    """Everything between two epochs, in one gauge."""

    globals: Globals
    statistics: Statistics
    cells: Cells
    steps: int


class CountEngine:
    """Stochastic variational inference with Fisher weights; one batch of all cells makes it coordinate ascent."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        n, m = matrix.shape
        self._matrix, self._options = matrix, options
        rotates = rotation_is_free(options.prior_scales) and options.n_factors > 0
        self._problem = Problem(n, m, options.family, COUNTS[options.likelihood], rotates)
        rng = np.random.default_rng(options.seed)
        self._batches = Minibatches(matrix, options.batch_size, options.device, torch.float32, rng)
        self._sizes = np.zeros(n) if options.log_size is None else options.log_size
        self._log_size = torch.as_tensor(self._sizes, dtype=torch.float32, device=options.device)
        self._some = np.sort(rng.permutation(n)[: min(n, START_CELLS)])
        self.n_batches = self._batches.count

    def start(self) -> tuple[State, float]:
        """Margins and factors from some cells, and the ELBO per entry without factors."""
        problem, options, some = self._problem, self._options, self._some
        rng = np.random.default_rng(options.seed)
        self._sample = EntrySample.draw(self._matrix.values[some], options.device, rng)
        parts = np.array_split(np.arange(len(some)), -(-len(some) // options.batch_size))
        y = [partial(self._read, some[part]) for part in parts]
        sizes = [self._log_size[torch.from_numpy(some[part])] for part in parts]
        g, activity = fit_margins(problem, y, sizes, options.prior_scales)
        rank0 = elbo_per_entry(problem, g, activity, (cell_prior(g), gene_prior(g)), self._sample, options.seed)
        n, r = problem.n_cells, options.n_factors
        factors = activity.mean.new_zeros(len(some), r)
        if r:
            logged = log_values(self._matrix.values[some], self._sizes[some])
            factors = first_factors(logged, r, options.device, options.seed)
        begun = with_factors(activity, factors)
        first = torch.from_numpy(parts[0])
        g, statistics = add_factors(
            problem, g, factors[first], y[0](), activity.rows(first.to(factors.device)), options.prior_scales
        )
        mean = factors.new_zeros(n, r + 1)
        cov = begun.cov.mean(0, keepdim=True)
        if n * packed_size(r + 1) * 4 <= settings.max_cov_bytes:
            cov = cov.repeat(n, 1)
        where = torch.from_numpy(some).to(mean.device)
        cells = Cells(mean, cov, self._log_size).put(where, begun)
        return State(g, statistics, cells, 1), rank0

    def _read(self, rows: np.ndarray) -> torch.Tensor:
        """Counts of some cells, dense on the device."""
        return self._matrix.batch(rows, self._options.device).dense()

    def epoch(self, state: State, number: int, bar: tqdm) -> tuple[State, list[float]]:
        """Every cell once, then the gauge of highest ELBO; the ELBO per entry."""
        problem = self._problem
        for rows, batch in self._batches.numbered_epoch():
            state = self._visit(state, rows, batch.dense(), number)
            bar.update()
        g = state.globals
        move, scales = best_move(g, state.statistics.xx, problem.n_cells, rotates=problem.rotates)
        state = replace(
            state,
            globals=replace(g.moved(move), scales=scales).in_family(problem.family),
            statistics=state.statistics.moved(move),
            cells=state.cells.moved(move, problem.family),
        )
        return state, [self._elbo(state)]

    def _visit(self, state: State, rows: torch.Tensor, y: torch.Tensor, number: int) -> State:
        problem, g = self._problem, state.globals
        features = GeneFeatures.of(g.gene_mean, g.gene_cov)
        cells = state.cells.rows(rows)
        for _ in range(self._n_steps(state, number)):
            cells, _ = cell_step(
                y, cells, features, g.mu, g.dispersion, problem.likelihood, cell_prior(g), problem.family
            )
        every = 1 if self.n_batches == 1 else DISPERSION_EVERY
        new = cell_statistics(problem, g, features, y, cells, every)
        rate = 1.0 if self.n_batches == 1 else learning_rate(state.steps)
        statistics = state.statistics.blend(new, rate)
        g = gene_step(problem, g, statistics)
        return State(g, statistics, state.cells.put(rows, cells), state.steps + 1)

    def _n_steps(self, state: State, number: int) -> int:
        if number == 1:
            return FIRST_STEPS if len(self._some) == self._problem.n_cells else COLD_STEPS
        return LATER_STEPS if state.cells.keeps_cov else WITHOUT_COV_STEPS

    def _elbo(self, state: State) -> float:
        g, cells = state.globals, state.cells
        priors = cell_prior(g), gene_prior(g)
        rows = torch.from_numpy(self._some).to(cells.mean.device)
        some = cells.rows(rows)
        if not cells.keeps_cov:
            noise = CountNoise(self._options.likelihood, g.dispersion, some.log_size)
            exact = Recomputed.of(
                float(g.mu), some.mean, g.gene_mean, Packed(g.gene_cov), noise, priors[0], self._problem.family
            )
            some = replace(some, cov=exact.packed())
        return elbo_per_entry(self._problem, g, some, priors, self._sample, self._options.seed)

    def finish(self, state: State, trace: Trace) -> FitResult:
        """A last step of all cells together, the stored gauge, and q of every cell given the genes as stored."""
        options = self._options
        g, cells, statistics = step_of_all(self._problem, state.globals, state.cells, state.statistics, self._batches)
        state = _drop_unused(State(g, statistics, cells, state.steps))
        g = state.globals
        q = CountPosterior(
            mu=float(g.mu),
            cell_mean=state.cells.mean.double(),
            cell_cov=Packed(state.cells.cov),
            gene_mean=g.gene_mean.double(),
            gene_cov=Packed(g.gene_cov),
            noise=CountNoise(options.likelihood, g.dispersion.double(), self._log_size.double()),
            cell_prior=cell_prior(g),
            gene_prior=gene_prior(g),
        )
        q = to_stored_gauge(q).rounded()
        q = project_counts(self._matrix, q, options.family, Cells(q.cell_mean, q.cell_cov.packed(), self._log_size))
        values = [*trace.values, (trace.values[-1][0] if trace.values else 0.0, self._stored_elbo(q))]
        spread = q.cell_mean[:, 1:].square().sum(0)
        ratio = (spread / spread.sum().clamp_min(1e-300)).tolist()
        return FitResult(q, values, trace.rank0, ratio, trace.converged)

    def _stored_elbo(self, q: CountPosterior) -> float:
        rows = torch.from_numpy(self._some).to(q.cell_mean.device)
        cells = Cells(q.cell_mean[rows].float(), q.cell_cov.at(rows).packed(), self._log_size[rows])
        mu = torch.as_tensor(q.mu, dtype=torch.float64, device=rows.device)
        scales = initial_scales(q.n_factors, {}, mu)  # the priors are given in their stored form
        g = Globals(mu, q.gene_mean.float(), q.gene_cov.packed(), q.noise.dispersion.float(), scales)
        priors = q.cell_prior, q.gene_prior
        return elbo_per_entry(self._problem, g, cells, priors, self._sample, self._options.seed)


def _drop_unused(state: State) -> State:
    """Without the factors that are off."""
    g = state.globals
    if g.n_factors == 0:
        return state
    squares = g.gene_squares()[1:]
    weight = state.statistics.weighted[:, 0].double() * len(state.cells.mean)
    gained = weight @ g.gene_mean[:, 1:].double().square() / len(state.cells.mean)
    on = (squares > OFF * squares.amax()) & (gained * g.scales.A.square() > TOO_LITTLE)
    kept = torch.cat([on.new_ones(1), on])
    first, second = torch.tril_indices(len(kept), len(kept), device=kept.device)
    packed = kept[first] & kept[second]
    g = replace(
        g,
        gene_mean=g.gene_mean[:, kept],
        gene_cov=g.gene_cov[:, packed],
        scales=replace(g.scales, A=g.scales.A[on], B=g.scales.B[on]),
    )
    cells = replace(state.cells, mean=state.cells.mean[:, kept], cov=state.cells.cov[:, packed])
    return replace(state, globals=g, cells=cells)
