"""The natural-gradient engine for the Normal likelihood: closed-form steps, all cells at once or by minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..course import WHOLE
from ..engine import Engine
from ..state import Problem
from ..trace import steps_per_window
from .finish import finish
from .paired_steps import PairedSteps
from .ranks import elbo_per_entry, leading_factors, normal_curve
from .start import add_random_factors, fit_without_factors
from .sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data import CellMatrix
    from ..course import Pass, Place
    from ..options import FitOptions, FitResult
    from ..progress import Progress
    from ..ranks import RankCurve
    from ..trace import Trace
    from .sweep import Step


# a GPU waits for each answer, which is worth a few steps too many
STEPS_UNASKED = 16


class NormalEngine(Engine["Step"]):
    """Closed forms for the Normal likelihood with all entries observed; the gauge is moved at every step."""

    def __init__(self, matrix: CellMatrix, options: FitOptions) -> None:
        super().__init__(matrix, options, Problem.of(matrix, options), options.dtype)

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
        """An epoch of every cell once, or as many as it takes; estimates of the ELBO per entry along the way."""
        problem, batches = self._problem, self._batches
        if self.n_batches == 1:
            step = sweep(problem, state.globals, batches.everyone)
            bar.update()
            return step, [elbo_per_entry(problem, step)]
        steps = PairedSteps(problem, pass_.sums.start if pass_.sums else state.globals, (number - 1) * batches.count)
        every = steps_per_window(self.n_estimates(number))
        if self._options.device.type != "cpu":
            every = max(every, STEPS_UNASKED)

        def ends(at: Place[Step]) -> bool:
            return has_settled is not None and at.n_seen % every == 0 and has_settled(steps.estimates(at.sums))

        at = pass_.through(state, batches.epoch(number, pass_.n_seen), steps, bar, ends)
        return at.state, steps.estimates(at.sums)

    def n_minibatches(self, number: int) -> int:
        """Minibatches of an epoch; the first leaves out that of the start."""
        return self.n_batches - 1 if number == 1 and self.n_batches > 1 else self.n_batches

    def n_estimates(self, number: int) -> int:
        """Estimates of the ELBO, one a step."""
        return self.n_minibatches(number)

    def ranks(self, state: Step) -> RankCurve:
        """The ELBO per entry of the leading k factors, for every k."""
        return normal_curve(self._problem, state)

    def leading(self, state: Step, n_factors: int) -> Step:
        """The step with its leading factors alone."""
        return leading_factors(self._problem, state, n_factors)

    def finish(self, state: Step, trace: Trace) -> FitResult:
        """The result, after factors that are off are dropped."""
        return finish(self._problem, state, self._batches, trace)
