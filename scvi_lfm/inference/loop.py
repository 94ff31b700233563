"""The natural-gradient engine's loop, the same for every likelihood: epochs, a trace of the ELBO, stopping."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.likelihoods import LIKELIHOODS
from ..posterior.held_out import score_held_out
from .convergence import remaining_gap, values_left
from .counts.engine import CountEngine
from .normal.engine import NormalEngine
from .observed.engine import ObservedEngine
from .options import HeldOutTrace
from .progress import show_progress
from .trace import Trace, noise_of, windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data import CellMatrix
    from .engine import Engine
    from .options import FitOptions, FitResult
    from .progress import Progress
    from .ranks import RankCurve

# epochs in which the held-out log density falls, before the fit stops
FALLS = 2
# of the epochs, one in so many at the most goes before factors are first dropped
FIRST_SHARE = 4


def fit_natural_gradient(matrix: CellMatrix, options: FitOptions) -> FitResult:
    """Stochastic variational inference by natural gradients; one batch of all cells makes it coordinate ascent."""
    engine = _engine(matrix, options)
    ranks: RankCurve | None = None
    with show_progress(options.max_epochs, shown=options.progress) as bar:
        state, rank0 = engine.start()
        trace = Trace([], rank0, converged=False)
        climb = partial(_climb, engine, options, matrix, bar)
        if options.choose_rank:
            state, trace, ranks = _choose_rank(engine, climb, state, trace, options.max_epochs)
        else:
            state, trace = climb(state, trace, options.max_epochs)
        bar.end(_reason(trace, options.tol))
        result = replace(engine.finish(state, trace), ranks=ranks)
    if matrix.held_out is None:
        return result
    last = (trace.held_out[-1][0], *score_held_out(result.posterior, matrix.held_out).means)
    return replace(result, held_out=HeldOutTrace([*trace.held_out, last], trace.stopped))


def _engine(matrix: CellMatrix, options: FitOptions) -> Engine[Any]:
    if not LIKELIHOODS[options.likelihood].linear:
        return CountEngine(matrix, options)
    return NormalEngine(matrix, options) if matrix.observed is None else ObservedEngine(matrix, options)


def _choose_rank(
    engine: Engine[Any],
    climb: Callable[[Any, Trace, int], tuple[Any, Trace]],
    state: Any,
    trace: Trace,
    max_epochs: int,
) -> tuple[Any, Trace, RankCurve]:
    """Epochs, then down to the number of factors of highest ELBO, until none is dropped any more."""
    # surplus factors creep on; with the few that stay, the bound soon settles
    state, trace = climb(state, trace, -(-max_epochs // FIRST_SHARE))
    ranks = engine.ranks(state)
    while True:
        settled = ranks.best >= state.globals.n_factors
        if not settled:
            state = engine.leading(state, ranks.best)
        if (settled and trace.converged) or trace.epochs == max_epochs:
            return state, trace, ranks
        state, trace = climb(state, trace, max_epochs)
        ranks = engine.ranks(state).followed_by(ranks)


def _climb(
    engine: Engine[Any], options: FitOptions, matrix: CellMatrix, bar: Progress, state: Any, trace: Trace, last: int
) -> tuple[Any, Trace]:
    """Epochs until the ELBO of this number of factors has settled or held-out entries fall, up to the epoch `last`."""
    # a factor is worth having if its n + m latents gain about a nat each
    one_nat_each = max(state.globals.n_factors, 1) * sum(matrix.shape) / matrix.n_observed
    values: list[tuple[float, float]] = []
    held_out: list[tuple[float, float, float]] = []
    settled, falls, ahead = False, False, engine.epochs_to_finish
    for epoch in range(trace.epochs + 1, last + 1):
        n_steps = engine.n_estimates(epoch)

        has_settled = partial(_has_settled, tuple(values), trace.rank0, one_nat_each, options.tol, epoch, n_steps)
        state, estimates = engine.epoch(state, epoch, bar, has_settled)
        new = windows(epoch, estimates, n_steps)
        values += new
        elbos = [value for _, value in values]
        if np.isnan(elbos[-1]):  # a GPU does not wait to be told of a matrix that is not positive definite
            msg = "the lower bound is not a number"
            raise torch.linalg.LinAlgError(msg)
        gap = remaining_gap(elbos, trace.rank0, one_nat_each, ahead)
        settled = gap < options.tol
        # with a number of factors to choose, this one's epochs are not the last
        left = np.inf if options.choose_rank else values_left(elbos, trace.rank0, options.tol, one_nat_each, ahead)
        bar.epoch(epoch, elbos[-1], gap, min(left / len(new), last - epoch))
        score = engine.held_out(state)
        if score is not None:
            held_out.append((float(epoch), *score.means))
            falls = _falls(held_out)
        if settled or falls:
            break
    stopped = falls and not settled
    return state, Trace(trace.values + values, trace.rank0, settled or falls, trace.held_out + held_out, stopped)


def _has_settled(
    before: tuple[tuple[float, float], ...],
    rank0: float,
    least_gain: float,
    tol: float,
    epoch: int,
    n_steps: int,
    estimates: list[float],
) -> bool:
    """Whether the first estimates of an epoch of `n_steps` tell that the fit has settled."""
    elbos = [value for _, value in [*before, *windows(epoch, estimates, n_steps)]]
    is_clear = noise_of(estimates, n_steps) < tol * max(elbos[-1] - rank0, least_gain)
    return is_clear and remaining_gap(elbos, rank0, least_gain) < tol


def _reason(trace: Trace, tol: float) -> str:
    """Why the last epoch was the last, in words."""
    if trace.stopped:
        return "stopped because held-out entries were predicted worse"
    return f"converged to tol={tol:g}" if trace.converged else "stopped by max_epochs"


def _falls(held_out: list[tuple[float, float, float]]) -> bool:
    """Whether the log density has fallen twice in a row: from here on, the fit learns noise."""
    last = [log_density for _, log_density, _ in held_out[-1 - FALLS :]]
    return len(last) > FALLS and all(after < before for before, after in zip(last[:-1], last[1:], strict=True))
