"""A fit in its course: all from which it can go on, and how an epoch tells of its steps."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .progress import Progress
    from .ranks import RankCurve

S = TypeVar("S")
Part = TypeVar("Part")
Minibatch = TypeVar("Minibatch")


@dataclass(frozen=True)
class Place(Generic[S]):
    """A place between two epochs, or between two minibatches of one."""

    state: S
    n_seen: int = 0  # minibatches of the epoch that is under way
    sums: Any = None  # what the engine has added up over them

    def after(self, state: S, sums: Any = None) -> Place[S]:
        """The place after one more minibatch."""
        return Place(state, self.n_seen + 1, sums)


@dataclass(frozen=True)
class Pass(Generic[S]):
    """An epoch to go through, from its beginning or from where it was left.

    `keep` makes the place after each minibatch and may note it down. It may make it twice, when the fit is interrupted
    in between: what is written in place must be written here, and be the same when it is written again.
    """

    n_seen: int = 0
    sums: Any = None
    keep: Callable[[Callable[[], Place[S]]], Place[S]] = operator.call
    most: int | None = None  # minibatches after which it ends; None: all of them

    def through(
        self,
        state: S,
        minibatches: Iterable[Minibatch],
        step: Callable[[Place[S], Minibatch], Callable[[], Place[S]]],
        bar: Progress,
        ends: Callable[[Place[S]], bool] | None = None,
    ) -> Place[S]:
        """A step at each of the minibatches that are left, from `state`, or up to a place at which the epoch `ends`.

        `step` computes, and gives what makes the place after it.
        """
        at = Place(state, self.n_seen, self.sums)
        left = None if self.most is None else self.most - self.n_seen
        for minibatch in islice(minibatches, left):
            after = step(at, minibatch)
            bar.update()
            if ends is not None and ends(last := after()):
                return last
            at = self.keep(after)
        return at

    def over(self, part: Callable[[S], Part], whole: Callable[[Part], S]) -> Pass[Part]:
        """Pass for a function that knows a part of the state alone."""

        def keep(make: Callable[[], Place[Part]]) -> Place[Part]:
            def place() -> Place[S]:
                made = make()
                return Place(whole(made.state), made.n_seen, made.sums)

            kept = self.keep(place)
            return Place(part(kept.state), kept.n_seen, kept.sums)

        return Pass(self.n_seen, self.sums, keep, self.most)


WHOLE: Pass[Any] = Pass()


def steps_within(epochs: float, n_steps: int) -> int:
    """Steps of an epoch of `n_steps` that are to be made where so many epochs are left, at least one."""
    # 0.7 * 10 is a little more than 7
    return max(1, min(math.ceil(round(epochs * n_steps, 6)), n_steps))


@dataclass(frozen=True)
class Draws:
    """Precision and random numbers, on which steps depend besides the state."""

    double: bool  # whether values are read in float64
    generator: dict[str, Any]  # state of the random numbers, at the beginning of the epoch


@dataclass(frozen=True)
class Course:
    """Course of a fit: all from which it goes on."""

    place: Place[Any]
    draws: Draws
    before: Trace  # of earlier numbers of factors
    values: tuple[tuple[float, float], ...] = ()  # of this one: epoch, ELBO per entry
    held_out: tuple[tuple[float, float, float], ...] = ()
    ranks: RankCurve | None = None  # what is known of numbers of factors so far

    @property
    def epochs(self) -> int:
        """Epochs that are over."""
        return self.trace(converged=False).epochs

    def goes_beyond(self, max_epochs: float, n_minibatches: Callable[[int], int]) -> bool:
        """Whether more was read than `max_epochs` allows, where an epoch has so many minibatches by its number."""
        if self.place.n_seen == 0:
            return self.trace(converged=False).end > max_epochs
        left = max_epochs - self.epochs
        return left <= 0 or self.place.n_seen > steps_within(left, n_minibatches(self.epochs + 1))

    def trace(self, *, converged: bool, stopped: bool = False) -> Trace:
        """Trace of the fit so far."""
        before, values = self.before, [*self.before.values, *self.values]
        return Trace(values, before.rank0, converged, [*before.held_out, *self.held_out], stopped)

    def after(
        self,
        state: Any,
        draws: Draws,
        values: list[tuple[float, float]],
        held_out: tuple[float, float, float] | None,
    ) -> Course:
        """Course after an epoch."""
        more = () if held_out is None else (held_out,)
        return replace(
            self,
            place=Place(state),
            draws=draws,
            values=(*self.values, *values),
            held_out=(*self.held_out, *more),
        )
