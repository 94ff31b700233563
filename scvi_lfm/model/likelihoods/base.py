"""What a likelihood is to inference, the posterior and the tools: a record of functions, and laws of values."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from torch import Tensor

# rates beyond e^30 are no counts, and float32 would overflow
MAX_LOG_RATE = 30.0


def on_arrays(function: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """A function of tensors from one of float64 arrays; its values lie where the first argument does."""

    @functools.wraps(function)
    def of_tensors(*arguments: Tensor) -> Tensor:
        arrays = (argument.double().cpu().numpy() for argument in arguments)
        return torch.as_tensor(np.asarray(function(*arrays)), device=arguments[0].device)

    return of_tensors


@dataclass(frozen=True, eq=False)
class Likelihood:
    """A likelihood p(y | eta): functions of values, of what it sees of eta, and of its parameters; shapes broadcast.

    It sees eta itself, or, where it `has_rate`, `rate = exp(eta)` with the size factor of the cell in it.
    """

    name: str
    has_rate: bool
    linear: bool  # whether the expected value is eta itself
    log_density: Callable[..., Tensor]  # of (y, seen, *parameters): log density or probability
    # of the same: Fisher information about eta, which does not depend on y, and score
    weight_and_score: Callable[..., tuple[Tensor, Tensor]]
    mean: Callable[..., Tensor]  # of (seen, *parameters), as is `variance`
    variance: Callable[..., Tensor]
    sample: Callable[..., np.ndarray]  # of arrays (seen, *parameters) and a generator
    lower_tail: Callable[..., Tensor]  # of (y, seen, *parameters): P(Y <= y), accurate far out
    upper_tail: Callable[..., Tensor]  # of the same: P(Y >= y)
    law: Callable[..., Law]  # of (mean, var, *parameters): of values whose eta is Normal with these moments
    maximum: int | None = None  # the largest value; None: there is none
    summed: Likelihood | None = None  # of several values together; None: the same
    # of (y, seen, *parameters): derivative of the log density by the dispersion of each gene, summed over cells, (m,)
    dispersion_score: Callable[..., Tensor] | None = None  # None: there is no dispersion to learn

    @property
    def has_levels(self) -> bool:
        """Whether values are levels, whose distances are not known."""
        return not (self.linear or self.has_rate)

    @property
    def learns_dispersion(self) -> bool:
        """Whether each gene has a dispersion to learn."""
        return self.dispersion_score is not None


class Law(ABC):
    """Distributions of the values of some entries, with the uncertainty of eta integrated out."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Expected values."""

    @abstractmethod
    def variance(self) -> Tensor:
        """Variances."""

    @abstractmethod
    def log_density(self, y: Tensor) -> Tensor:
        """Log density, or log probability, of values."""

    @abstractmethod
    def lower_tail(self, y: Tensor) -> Tensor:
        """P(Y <= y)."""

    @abstractmethod
    def upper_tail(self, y: Tensor) -> Tensor:
        """P(Y >= y)."""

    @abstractmethod
    def quantile(self, level: float) -> np.ndarray:
        """Least values whose probability, with those below them, is at least `level`."""

    @abstractmethod
    def at(self, index: Any) -> Self:
        """The laws of some of the entries."""

    def levels(self) -> list[float]:
        """All values that there are, increasing, where they are few; none where they are many."""
        return []

    def log_zero(self) -> Tensor:
        """Log density, or log probability, of a zero."""
        return self.log_density(torch.zeros_like(self.mean()))

    def transform(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """P(Y < y) + V P(Y = y), with V uniform between 0 and 1: uniform too where the law is right."""
        return 1 - self.upper_tail(y)


@dataclass(frozen=True)
class InFamily(Law):
    """Laws that are those of a likelihood, with eta known and other parameters."""

    likelihood: Likelihood
    seen: Tensor
    parameters: tuple[Tensor, ...]

    def mean(self) -> Tensor:
        return self.likelihood.mean(self.seen, *self.parameters)

    def variance(self) -> Tensor:
        return self.likelihood.variance(self.seen, *self.parameters)

    def log_density(self, y: Tensor) -> Tensor:
        return self.likelihood.log_density(y, self.seen, *self.parameters)

    def lower_tail(self, y: Tensor) -> Tensor:
        return self.likelihood.lower_tail(y, self.seen, *self.parameters)

    def upper_tail(self, y: Tensor) -> Tensor:
        return self.likelihood.upper_tail(y, self.seen, *self.parameters)

    def at(self, index: Any) -> Self:
        # a parameter of another shape is common to all entries
        parts = (part[index] if part.shape == self.seen.shape else part for part in self.parameters)
        return replace(self, seen=self.seen[index], parameters=tuple(parts))
