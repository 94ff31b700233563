"""The natural-gradient engine's loop, the same for every likelihood: epochs, a trace of the ELBO, stopping."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.likelihoods import LIKELIHOODS
from ..posterior.held_out import score_held_out
from .checkpoint import keeper
from .convergence import remaining_gap, values_left
from .counts.engine import CountEngine
from .course import Course, Pass, Place, steps_within
from .normal.engine import NormalEngine
from .observed.engine import ObservedEngine
from .options import HeldOutTrace
from .progress import show_progress
from .trace import Trace, noise_of, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..data import CellMatrix
    from .checkpoint import Keeper
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
    engine = engine_for(matrix, options)
    with keeper(matrix, options) as kept, show_progress(options.max_epochs, shown=options.progress) as bar:
        course = kept.read(engine.n_minibatches) or _begun(engine)
        engine.restore(course.draws)
        climb = partial(_climb, engine, options, matrix, bar, kept)
        ranks: RankCurve | None = None
        if options.choose_rank:
            state, trace, ranks = _choose_rank(engine, climb, course, options.max_epochs)
        else:
            course, trace = climb(course, options.max_epochs)
            state = course.place.state
        kept.end()  # from here on, what is in memory is written over
        bar.end(_reason(trace, options.tol))
        result = replace(engine.finish(state, trace), ranks=ranks, seconds_before=kept.seconds_before)
        if matrix.held_out is None:
            return result
        last = (trace.held_out[-1][0], *score_held_out(result.posterior, matrix.held_out).means)
        return replace(result, held_out=HeldOutTrace([*trace.held_out, last], trace.stopped))


def _begun(engine: Engine[Any]) -> Course:
    state, rank0 = engine.start()
    return Course(Place(state), engine.draws, Trace([], rank0, converged=False))


def engine_for(matrix: CellMatrix, options: FitOptions) -> Engine[Any]:
    """The closed forms for a likelihood and what is data."""
    if not LIKELIHOODS[options.likelihood].linear:
        return CountEngine(matrix, options)
    return NormalEngine(matrix, options) if matrix.observed is None else ObservedEngine(matrix, options)


def _choose_rank(
    engine: Engine[Any], climb: Callable[[Course, float], tuple[Course, Trace]], course: Course, max_epochs: float
) -> tuple[Any, Trace, RankCurve]:
    """Epochs, then down to the number of factors of highest ELBO, until none is dropped any more."""
    while True:
        # surplus factors creep on; with the few that stay, the bound soon settles
        first = min(math.ceil(max_epochs / FIRST_SHARE), max_epochs)
        course, trace = climb(course, max_epochs if course.ranks else first)
        state = course.place.state
        ranks = engine.ranks(state)
        ranks = ranks.followed_by(course.ranks) if course.ranks else ranks
        settled = ranks.best >= state.globals.n_factors
        if not settled:
            state = engine.leading(state, ranks.best)
        if (settled and trace.converged) or trace.epochs >= max_epochs:
            return state, trace, ranks
        course = Course(Place(state), course.draws, trace, ranks=ranks)


def _climb(
    engine: Engine[Any],
    options: FitOptions,
    matrix: CellMatrix,
    bar: Progress,
    kept: Keeper,
    course: Course,
    last: float,
) -> tuple[Course, Trace]:
    """Epochs until the ELBO of this number of factors has settled or held-out entries fall, at most `last` of them.

    An epoch that `last` cuts short is not noted as one that is over: who calls again for more goes on inside it.
    """
    # a factor is worth having if its n + m latents gain about a nat each
    one_nat_each = max(course.place.state.globals.n_factors, 1) * sum(matrix.shape) / matrix.n_observed
    rank0, ahead = course.before.rank0, engine.epochs_to_finish
    course = kept.keep(course)
    while True:
        elbos = [value for _, value in course.values]
        gap = remaining_gap(elbos, rank0, one_nat_each, ahead)
        settled, falls = gap < options.tol, _falls(course.held_out)
        done = course.epochs
        if elbos:
            # with a number of factors to choose, this one's epochs are not the last
            left = np.inf if options.choose_rank else values_left(elbos, rank0, options.tol, one_nat_each, ahead)
            an_epoch = sum(end > done - 1 for end, _ in course.values)
            made = course.values[-1][0]
            bar.epoch(made, elbos[-1], gap, left / an_epoch)
        if settled or falls or done >= last:
            return course, course.trace(converged=settled or falls, stopped=falls and not settled)
        epoch, place = done + 1, course.place
        n_steps, n_minibatches = engine.n_estimates(epoch), engine.n_minibatches(epoch)
        most = steps_within(last - done, n_minibatches)
        cut = most < n_minibatches
        has_settled = partial(_has_settled, course.values, rank0, one_nat_each, options.tol, epoch, n_steps)
        pass_ = Pass(place.n_seen, place.sums, kept.within(course), most if cut else None)
        state, estimates = engine.epoch(place.state, epoch, bar, has_settled, pass_)
        end = done + most / n_minibatches
        new = [(min(at, end), value) for at, value in windows(epoch, estimates, n_steps)]
        if np.isnan(new[-1][1]):  # a GPU does not wait to be told of a matrix that is not positive definite
            msg = "the lower bound is not a number"
            raise torch.linalg.LinAlgError(msg)
        score = engine.held_out(state)
        held_out = None if score is None else (end, *score.means)
        course = course.after(state, engine.draws, new, held_out)
        course = course if cut else kept.keep(course)


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
    """Reason in words why the last epoch was the last."""
    if trace.stopped:
        return "stopped because held-out entries were predicted worse"
    return f"converged to tol={tol:g}" if trace.converged else "stopped by max_epochs"


def _falls(held_out: Sequence[tuple[float, float, float]]) -> bool:
    """Whether the log density has fallen twice in a row: from here on, the fit learns noise."""
    last = [log_density for _, log_density, _ in held_out[-1 - FALLS :]]
    return len(last) > FALLS and all(after < before for before, after in zip(last[:-1], last[1:], strict=True))
