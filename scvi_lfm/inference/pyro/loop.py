"""Black-box stochastic variational inference through Pyro, on the program of the model: the reference engine.

Reparameterised gradients of the minibatch ELBO, in which Pyro's plate scales a batch by n / |batch|. Cells take part
only when they are drawn: their parameters get sparse gradients and a sparse optimiser, because the momentum of a dense
one would move cells outside the batch.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch

from ..._context import pyro_sandbox
from ...model.likelihoods import COUNTS
from ..course import steps_within
from ..progress import show_progress
from ..trace import Trace
from .counts import CountProgram
from .normal import NormalProgram
from .student_t import StudentProgram

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ..minibatches import Minibatches
    from ..options import FitOptions, FitResult

# the learning rate is halved whenever the smoothed ELBO has stood still, and the fit ends after this many halvings
HALVINGS = 7
PATIENCE_STEPS = 150
SMOOTHING_STEPS = 50


class Program(Protocol):
    """What the loop asks of a likelihood: the Pyro program with its parameters."""

    batches: Minibatches
    rank0: float  # ELBO per entry without factors

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Optimisers of all parameters."""

    def loss(self, rows: Tensor, batch: Batch) -> Tensor:
        """The negative ELBO of all cells, estimated from a batch."""

    def finish(self, trace: Trace) -> FitResult:
        """The result."""


def fit_pyro(matrix: CellMatrix, options: FitOptions) -> FitResult:
    """Fit by gradients of the Pyro program."""
    with pyro_sandbox(options.seed, options.device):
        program = _program(matrix, options)
        return program.finish(climb(program, matrix.shape[0] * matrix.shape[1], options))


def _program(matrix: CellMatrix, options: FitOptions) -> Program:
    if options.likelihood in COUNTS:
        return CountProgram(matrix, options)
    return (StudentProgram if options.likelihood == "student_t" else NormalProgram)(matrix, options)


def climb(program: Program, n_entries: int, options: FitOptions) -> Trace:
    """Epochs until the learning rate has come to its end."""
    batches, optimisers = program.batches, program.optimisers()
    schedule = Schedule(optimisers, options.tol)
    values: list[tuple[float, float]] = []
    with show_progress(options.max_epochs, shown=options.progress) as bar:
        for done in range(math.ceil(options.max_epochs)):
            n_steps, losses = steps_within(options.max_epochs - done, batches.count), []
            for rows, batch in islice(batches.numbered_epoch(), n_steps):
                loss = program.loss(rows, batch)
                for optimiser in optimisers:
                    optimiser.zero_grad()
                loss.backward()
                for optimiser in optimisers:
                    optimiser.step()
                losses.append(loss.detach())
                bar.update()
            mean = -float(torch.stack(losses).mean()) / n_entries
            end = done + n_steps / batches.count
            values.append((end, mean))
            bar.epoch(end, mean, math.inf, math.inf)
            if schedule.ends(mean, program.rank0, n_steps):
                bar.end("learning rate at its end")
                return Trace(values, program.rank0, converged=True)
        bar.end("stopped by max_epochs")
    return Trace(values, program.rank0, converged=False)


class Schedule:
    """Halves the learning rates when the smoothed ELBO stands still, and ends the fit when they are small.

    `convergence.remaining_gap`, which ends the closed forms, reads what is missing from gains that shrink from value to
    value. Steps of a constant rate have no such gains: the ELBO of a few draws jumps around a level that the rate sets.
    """

    def __init__(self, optimisers: list[torch.optim.Optimizer], tol: float) -> None:
        self._optimisers, self._tol = optimisers, tol
        self._smoothed = self._best = -float("inf")
        self._steps_since_best = self._halved = 0

    def ends(self, value: float, rank0: float, steps: int) -> bool:
        """Take the mean ELBO of `steps` steps; True when nothing more is to be gained."""
        weight = min(1.0, steps / SMOOTHING_STEPS)
        self._smoothed = value if self._best == -float("inf") else (1 - weight) * self._smoothed + weight * value
        self._steps_since_best += steps
        # a tenth of the tolerance: the steps are small and many
        if self._smoothed > self._best + 0.1 * self._tol * max(self._smoothed - rank0, 0.0):
            self._best, self._steps_since_best = self._smoothed, 0
        if self._steps_since_best < PATIENCE_STEPS:
            return False
        self._steps_since_best = 0
        self._halved += 1
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] /= 2
        return self._halved >= HALVINGS
