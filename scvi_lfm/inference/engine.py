"""What every engine of natural gradients is: a room of closed forms gives its steps, and this what is around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import numpy as np
import torch

from .course import WHOLE, Draws
from .minibatches import Minibatches
from .moves import best_move
from .noise import noise_is_lost

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from torch import Tensor

    from ..data import CellMatrix
    from ..model import PriorScales
    from ..posterior.gauge import Move
    from ..posterior.held_out import Score
    from .course import Pass
    from .options import FitOptions, FitResult
    from .progress import Progress
    from .ranks import RankCurve
    from .state import Globals, Problem
    from .trace import Trace

    class AnyState(Protocol):
        """Everything between two epochs, in one gauge."""

        @property
        def globals(self) -> Globals:
            """All that cells share."""


S = TypeVar("S", bound="AnyState")


class Engine(ABC, Generic[S]):
    """Stochastic variational inference by natural gradients; one batch of all cells makes it coordinate ascent."""

    # the gain of so many epochs comes when a fit is finished
    epochs_to_finish: ClassVar[int] = 0

    def __init__(self, matrix: CellMatrix, options: FitOptions, problem: Problem, dtype: torch.dtype) -> None:
        self._matrix, self._options, self._problem = matrix, options, problem
        self._prepare(dtype)

    def _prepare(self, dtype: torch.dtype) -> None:
        options, self._dtype = self._options, dtype
        self._rng = np.random.default_rng(options.seed)
        self._batches = Minibatches(self._matrix, options.batch_size, options.device, dtype, self._rng)

    @property
    def n_batches(self) -> int:
        """Minibatches in an epoch."""
        return self._batches.count

    def start(self) -> tuple[S, float]:
        """A first state, and the ELBO per entry without factors; in float64 where float32 does not show the noise."""
        state, rank0 = self._first_state()
        noise = self._noise(state)
        if noise is not None and self._dtype == torch.float32 and noise_is_lost(*noise):
            self._prepare(torch.float64)
            state, rank0 = self._first_state()
        return state, rank0

    @property
    def draws(self) -> Draws:
        """Precision and random numbers, on which the next epoch depends besides the state."""
        return Draws(self._dtype == torch.float64, dict(self._rng.bit_generator.state))

    def restore(self, draws: Draws) -> None:
        """Go on as it was when these were read."""
        dtype = torch.float64 if draws.double else torch.float32
        if dtype != self._dtype:
            self._prepare(dtype)
        self._rng.bit_generator.state = draws.generator

    def _best_move(self, g: Globals, cell_moment: Tensor) -> tuple[Move, PriorScales]:
        return best_move(g, cell_moment, self._problem.n_cells, rotates=self._problem.rotates)

    @abstractmethod
    def _first_state(self) -> tuple[S, float]:
        """A first state, and the ELBO per entry without factors."""

    @abstractmethod
    def _noise(self, state: S) -> tuple[Tensor, Tensor] | None:
        """Precisions of the genes and the mean square of the values; None for counts."""

    @abstractmethod
    def epoch(
        self,
        state: S,
        number: int,
        bar: Progress,
        has_settled: Callable[[list[float]], bool] | None = None,
        pass_: Pass[S] = WHOLE,
    ) -> tuple[S, list[float]]:
        """An epoch of every cell once, or as many as it takes; estimates of the ELBO per entry along the way.

        `pass_` tells what of it is done already and where it ends, and is told of its steps where an engine can be
        stopped between them.
        """

    def n_minibatches(self, number: int) -> int:
        """Minibatches of an epoch."""
        return self.n_batches

    def n_estimates(self, number: int) -> int:
        """Estimates of the ELBO in a whole epoch."""
        return 1

    def held_out(self, state: S) -> Score | None:
        """Score of the entries held out, in the last epoch; None where there are none."""
        return None

    @abstractmethod
    def ranks(self, state: S) -> RankCurve:
        """The ELBO per entry of the leading k factors, for every k."""

    @abstractmethod
    def leading(self, state: S, n_factors: int) -> S:
        """The state with its leading factors alone."""

    @abstractmethod
    def finish(self, state: S, trace: Trace) -> FitResult:
        """The result, without the factors that are off."""
