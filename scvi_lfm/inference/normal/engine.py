"""The natural-gradient engine for the Normal likelihood: closed-form steps, all cells at once or by minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...model.priors import kl_of_mu, rotation_is_free
from ..engine import Engine
from ..learning_rate import learning_rate
from ..state import Problem
from .elbo import kl_genes
from .finish import drop_unused_factors, finish
from .ranks import elbo_per_entry, leading_factors, normal_curve
from .start import add_random_factors, fit_without_factors
from .sweep import LocalStep, sweep

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import CellMatrix
    from ..minibatches import Minibatches
    from ..options import FitOptions, FitResult
    from ..progress import Progress
    from ..ranks import RankCurve
    from ..trace import Trace
    from .state import NormalGlobals
    from .sweep import Step


class NormalEngine(Engine["Step"]):
    """Closed forms for the Normal likelihood with all entries observed; the gauge is moved at every step."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        rotates = rotation_is_free(options.prior_scales)
        problem = Problem(*matrix.shape, options.family, options.noise, rotates)
        super().__init__(matrix, options, problem, options.dtype)

    def _noise(self, state: Step) -> tuple[Tensor, Tensor]:
        return state.globals.precision, state.statistics.mean_square

    def _first_state(self) -> tuple[Step, float]:
        problem, options, first = self._problem, self._options, self._batches.first()
        step = fit_without_factors(problem, first, options.prior_scales)
        rank0 = elbo_per_entry(problem, step)
        if options.n_factors:
            generator = torch.Generator().manual_seed(options.seed)
            step = add_random_factors(problem, step.globals, first, options.n_factors, options.prior_scales, generator)
        return step, rank0

    def epoch(self, state: Step, number: int, bar: Progress) -> tuple[Step, list[float]]:
        """Every cell once; estimates of the ELBO per entry along the way."""
        run = _sweep_all_cells if self.n_batches == 1 else _pass_over_minibatches
        return run(self._problem, state, self._batches, number, bar)

    def held_out(self, state: Step) -> None:
        """None: every entry is data."""

    def ranks(self, state: Step) -> RankCurve:
        """The ELBO per entry of the leading k factors, for every k."""
        return normal_curve(self._problem, state)

    def leading(self, state: Step, n_factors: int) -> Step:
        """The step with its leading factors alone."""
        return leading_factors(self._problem, state, n_factors)

    def finish(self, state: Step, trace: Trace) -> FitResult:
        """The result, after factors that are off are dropped."""
        return finish(self._problem, drop_unused_factors(self._problem, state), self._batches, trace)


def _sweep_all_cells(
    problem: Problem, step: Step, batches: Minibatches, epoch: int, bar: Progress
) -> tuple[Step, list[float]]:
    """One sweep of coordinate ascent, and its ELBO per entry."""
    for batch in batches.epoch(epoch):
        step = sweep(problem, step.globals, batch)
        bar.update()
    return step, [elbo_per_entry(problem, step)]


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
