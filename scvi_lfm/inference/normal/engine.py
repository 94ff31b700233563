"""The natural-gradient engine for the Normal likelihood: closed-form steps, all cells at once or by minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ...model.priors import kl_of_mu, rotation_is_free
from ..learning_rate import learning_rate
from ..minibatches import Minibatches
from ..noise import noise_is_lost
from ..state import Problem
from .elbo import elbo, kl_genes
from .finish import drop_unused_factors, finish
from .ranks import leading_factors, normal_curve
from .start import add_random_factors, fit_without_factors
from .sweep import LocalStep, sweep

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import CellMatrix
    from ..options import FitOptions, FitResult
    from ..progress import Progress
    from ..ranks import RankCurve
    from ..trace import Trace
    from .state import NormalGlobals
    from .sweep import Step


class NormalEngine:
    """Closed-form stochastic variational inference; one batch of all cells makes it coordinate ascent."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        n_cells, n_genes = matrix.shape
        self._matrix, self._options = matrix, options
        self._problem = Problem(n_cells, n_genes, options.family, options.noise, rotation_is_free(options.prior_scales))
        self._prepare(options.dtype)

    def _prepare(self, dtype: torch.dtype) -> None:
        rng = np.random.default_rng(self._options.seed)
        self._batches = Minibatches(self._matrix, self._options.batch_size, self._options.device, dtype, rng)

    @property
    def n_batches(self) -> int:
        """Minibatches in an epoch."""
        return self._batches.count

    def start(self) -> tuple[Step, float]:
        """A first step from one block of cells, and the ELBO per entry without factors on that block."""
        step, rank0 = self._first_step()
        if self._options.dtype == torch.float32 and noise_is_lost(step.globals.precision, step.statistics.mean_square):
            self._prepare(torch.float64)
            step, rank0 = self._first_step()
        return step, rank0

    def _first_step(self) -> tuple[Step, float]:
        problem, options, first = self._problem, self._options, self._batches.first()
        step = fit_without_factors(problem, first, options.prior_scales)
        rank0 = _per_entry(problem, step)
        if options.n_factors:
            generator = torch.Generator().manual_seed(options.seed)
            step = add_random_factors(problem, step.globals, first, options.n_factors, options.prior_scales, generator)
        return step, rank0

    def epoch(self, step: Step, number: int, bar: Progress) -> tuple[Step, list[float]]:
        """Every cell once; estimates of the ELBO per entry along the way."""
        run = _sweep_all_cells if self.n_batches == 1 else _pass_over_minibatches
        return run(self._problem, step, self._batches, number, bar)

    def held_out(self, step: Step) -> None:
        """None: every entry is data."""

    def ranks(self, step: Step) -> RankCurve:
        """The ELBO per entry of the leading k factors, for every k."""
        return normal_curve(self._problem, step)

    def leading(self, step: Step, n_factors: int) -> Step:
        """The step with its leading factors alone."""
        return leading_factors(self._problem, step, n_factors)

    def finish(self, step: Step, trace: Trace) -> FitResult:
        """The result, after factors that are off are dropped."""
        return finish(self._problem, drop_unused_factors(self._problem, step), self._batches, trace)


def _per_entry(problem: Problem, step: Step) -> float:
    value = elbo(step.globals, step.statistics, step.cell_cov, problem.n_cells)
    return float(value) / (problem.n_cells * problem.n_genes)


def _sweep_all_cells(
    problem: Problem, step: Step, batches: Minibatches, epoch: int, bar: Progress
) -> tuple[Step, list[float]]:
    """One sweep of coordinate ascent, and its ELBO per entry."""
    for batch in batches.epoch(epoch):
        step = sweep(problem, step.globals, batch)
        bar.update()
    return step, [_per_entry(problem, step)]


def _pass_over_minibatches(
    problem: Problem, step: Step, batches: Minibatches, epoch: int, bar: Progress
) -> tuple[Step, list[float]]:
    """One epoch of stochastic steps, and an estimate of the ELBO per entry at each.

    Cells differ more from batch to batch than the ELBO does from step to step, so each batch is also measured under
    the genes that the epoch began with: the estimate is their ELBO over the epoch, plus what this batch gained.
    """
    at_start, start_kl = LocalStep(problem, step.globals), _global_kl(step.globals) / problem.n_cells
    gains, baseline = [], []
    for position, batch in enumerate(batches.epoch(epoch)):
        reference = at_start(batch).local_elbo - start_kl
        before = _global_kl(step.globals) / problem.n_cells
        taken = (epoch - 1) * batches.count + position + 1
        step = sweep(problem, step.globals, batch, step.statistics, learning_rate(taken))
        gains.append(step.local_elbo - before - reference)
        baseline.append(reference)
        bar.update()
    estimates = (torch.stack(baseline).mean() + torch.stack(gains)) / problem.n_genes
    return step, estimates.tolist()


def _global_kl(g: NormalGlobals) -> Tensor:
    return kl_genes(g) + kl_of_mu(g.mu, g.mu_var)
