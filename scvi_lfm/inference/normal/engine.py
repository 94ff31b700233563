"""The natural-gradient engine for the Normal likelihood: closed-form steps, all cells at once or by minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...model.priors import kl_of_mu, rotation_is_free
from ..course import WHOLE, Pass, Place
from ..engine import Engine
from ..learning_rate import learning_rate
from ..state import Problem
from ..trace import steps_per_window
from .elbo import kl_genes
from .finish import finish
from .ranks import elbo_per_entry, leading_factors, normal_curve
from .start import add_random_factors, fit_without_factors
from .sweep import local_step, mean_local_elbo, sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data import CellMatrix
    from ..minibatches import Minibatches
    from ..options import FitOptions, FitResult
    from ..progress import Progress
    from ..ranks import RankCurve
    from ..trace import Trace
    from .state import NormalGlobals
    from .sweep import Step


# a GPU waits for each answer, which is worth a few steps too many
STEPS_UNASKED = 16


@dataclass(frozen=True)
class NormalSums:
    """What a pass over minibatches keeps from step to step."""

    start: NormalGlobals  # the genes that it began with
    baseline: tuple[Tensor, ...]  # () each: ELBO per cell of each batch under these
    gains: tuple[Tensor, ...]  # () each: what its step gained


class NormalEngine(Engine["Step"]):
    """Closed forms for the Normal likelihood with all entries observed; the gauge is moved at every step."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        rotates = rotation_is_free(options.prior_scales)
        problem = Problem(*matrix.shape, options.family, options.noise, rotates)
        super().__init__(matrix, options, problem, options.dtype)

    def _noise(self, state: Step) -> tuple[Tensor, Tensor]:
        return state.globals.precision, state.statistics.mean_square

    def _first_state(self) -> tuple[Step, float]:
        problem, options, first = self._problem, self._options, self._batches.start
        step = fit_without_factors(problem, first, options.prior_scales)
        rank0 = elbo_per_entry(problem, step)
        if options.n_factors:
            generator = torch.Generator().manual_seed(options.seed)
            step = add_random_factors(problem, step.globals, first, options.n_factors, options.prior_scales, generator)
        return step, rank0

    def epoch(
        self,
        state: Step,
        number: int,
        bar: Progress,
        has_settled: Callable[[list[float]], bool] | None = None,
        pass_: Pass[Step] = WHOLE,
    ) -> tuple[Step, list[float]]:
        """Every cell once, or as many as it takes; estimates of the ELBO per entry along the way."""
        if self.n_batches > 1:
            every = steps_per_window(self.n_estimates(number))
            if self._options.device.type != "cpu":
                every = max(every, STEPS_UNASKED)
            return _pass_over_minibatches(self._problem, state, self._batches, number, bar, has_settled, every, pass_)
        step = sweep(self._problem, state.globals, self._batches.everyone)
        bar.update()
        return step, [elbo_per_entry(self._problem, step)]

    def n_estimates(self, number: int) -> int:
        """One a step; the first epoch leaves out the minibatch of the start."""
        return self.n_batches - 1 if number == 1 and self.n_batches > 1 else self.n_batches

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
        return finish(self._problem, state, self._batches, trace)


def _pass_over_minibatches(
    problem: Problem,
    step: Step,
    batches: Minibatches,
    epoch: int,
    bar: Progress,
    has_settled: Callable[[list[float]], bool] | None,
    every: int,
    pass_: Pass[Step],
) -> tuple[Step, list[float]]:
    """An epoch of stochastic steps, and an estimate of the ELBO per entry at each; `every` few it may be the last.

    Cells differ more from batch to batch than the ELBO does from step to step, so each batch is also measured under
    the genes that the epoch began with: the estimate is their ELBO over the epoch, plus what this batch gained.
    """
    sums: NormalSums = pass_.sums or NormalSums(step.globals, (), ())
    at_start, start_kl = None, _global_kl(sums.start) / problem.n_cells
    gains, baseline = [*sums.gains], [*sums.baseline]
    for position, cells in enumerate(batches.epoch(epoch, pass_.n_seen), pass_.n_seen):
        at_start = at_start or local_step(problem, sums.start)
        reference = mean_local_elbo(at_start, cells) - start_kl
        before = _global_kl(step.globals) / problem.n_cells
        taken = (epoch - 1) * batches.count + position + 1
        step = sweep(problem, step.globals, cells, step.statistics, learning_rate(taken))
        gains.append(step.local_elbo - before - reference)
        baseline.append(reference)
        bar.update()
        if (
            has_settled is not None
            and (position + 1) % every == 0
            and has_settled(_estimates(problem, baseline, gains))
        ):
            break
        # where the epoch goes on: it was asked whether it does
        now = NormalSums(sums.start, tuple(baseline), tuple(gains))
        pass_.keep(partial(Place, step, position + 1, now))
    return step, _estimates(problem, baseline, gains)


def _estimates(problem: Problem, baseline: list[Tensor], gains: list[Tensor]) -> list[float]:
    return ((torch.stack(baseline).mean() + torch.stack(gains)) / problem.n_genes).tolist()


def _global_kl(g: NormalGlobals) -> Tensor:
    return kl_genes(g) + kl_of_mu(g.mu, g.mu_var)
