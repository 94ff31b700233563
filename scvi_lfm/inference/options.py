"""Options of a fit, and what inference returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    import numpy as np
    import torch

    from ..posterior import CountPosterior, NormalPosterior
    from .ranks import RankCurve


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit; every choice is made and checked."""

    n_factors: int
    likelihood: str
    noise: str
    family: str
    prior_scales: Mapping[str, object]
    batch_size: int
    max_epochs: float  # readings of all cells
    tol: float
    device: torch.device
    dtype: torch.dtype
    seed: int
    progress: bool
    guide: str | Callable[..., Any] = "row_block"
    learning_rate: float = 0.02
    log_size: np.ndarray | None = None  # (n,): log size factors, for counts
    levels: tuple[float, float] | None = None  # the lowest and the highest, of ordinal values
    choose_rank: bool = False  # `n_factors` is then the most to choose from
    checkpoint: str | PathLike[str] | None = None  # file that keeps the state


@dataclass(frozen=True)
class HeldOutTrace:
    """Scores of held-out entries in the course of a fit."""

    values: list[tuple[float, float, float]]  # epoch, log density per entry, root mean square error; the last is exact
    stopped: bool  # whether the fit ended because the log density fell


@dataclass(frozen=True)
class FitResult:
    """A posterior in the stored gauge, and how it was reached."""

    posterior: NormalPosterior | CountPosterior
    elbo: list[tuple[float, float]]  # (epoch, ELBO per entry); the last one is exact
    elbo_rank0: float  # ELBO per entry without factors, on the block that inference started from
    variance_ratio: list[float]  # share of the variance around gene means that each factor explains
    converged: bool
    held_out: HeldOutTrace | None = None
    ranks: RankCurve | None = None
    seconds_before: float = 0.0  # that earlier calls took, from whose checkpoint it went on
