"""The natural-gradient engine's loop, the same for every likelihood: epochs, a trace of the ELBO, stopping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..model.likelihoods import COUNTS
from .convergence import remaining_gap
from .counts.engine import CountEngine
from .finish import Trace
from .masked.engine import MaskedEngine
from .normal_engine import NormalEngine
from .progress import progress_bar

if TYPE_CHECKING:
    from tqdm.std import tqdm

    from ..data import CellMatrix
    from .options import FitOptions, FitResult

WINDOWS_PER_EPOCH = 4


class Engine(Protocol):
    """What the loop asks of a likelihood's inference; the state in between is its own."""

    @property
    def n_batches(self) -> int:
        """Minibatches in an epoch."""

    def start(self) -> tuple[Any, float]:
        """A first state, and the ELBO per entry without factors."""

    def epoch(self, state: Any, number: int, bar: tqdm) -> tuple[Any, list[float]]:
        """Every cell once; estimates of the ELBO per entry along the way."""

    def finish(self, state: Any, trace: Trace) -> FitResult:
        """The result."""


def fit_natural_gradient(matrix: CellMatrix, options: FitOptions) -> FitResult:
    """Stochastic variational inference by natural gradients; one batch of all cells makes it coordinate ascent."""
    engine = _engine(matrix, options)
    state, rank0 = engine.start()
    n_cells, n_genes = matrix.shape
    # a factor is worth having if its n + m latents gain about a nat each
    one_nat_each = options.n_factors * (n_cells + n_genes) / matrix.n_observed
    trace: list[tuple[float, float]] = []
    converged = False
    with progress_bar(options.max_epochs * engine.n_batches, shown=options.progress) as bar:
        for epoch in range(1, options.max_epochs + 1):
            state, values = engine.epoch(state, epoch, bar)
            trace += _windows(epoch, values)
            converged = remaining_gap([value for _, value in trace], rank0, one_nat_each) < options.tol
            if converged:
                break
    return engine.finish(state, Trace(trace, rank0, converged))


def _engine(matrix: CellMatrix, options: FitOptions) -> Engine:
    if options.likelihood in COUNTS:
        return CountEngine(matrix, options)
    return NormalEngine(matrix, options) if matrix.observed is None else MaskedEngine(matrix, options)


def _windows(epoch: int, values: list[float]) -> list[tuple[float, float]]:
    """Means over quarters of an epoch, each at its end; single steps where there are fewer."""
    parts = np.array_split(np.asarray(values), min(WINDOWS_PER_EPOCH, len(values)))
    ends = epoch - 1 + np.arange(1, len(parts) + 1) / len(parts)
    return [(float(end), float(part.mean())) for end, part in zip(ends, parts, strict=True)]
