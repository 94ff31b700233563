"""The one loop over minibatches: where it begins, what it notes down, and where it ends."""

from __future__ import annotations

from functools import partial

import pytest

from scvi_lfm.inference.course import WHOLE, Pass, Place, steps_within


class Bar:
    def __init__(self):
        self.n_seen = 0

    def update(self):
        self.n_seen += 1


def add(at, minibatch):
    """A state that is the sum of the minibatches, and sums that count them."""
    return partial(at.after, at.state + minibatch, (at.sums or 0) + 1)


def noting(kept):
    def keep(make):
        kept.append(make())
        return kept[-1]

    return keep


def test_every_minibatch_is_a_step_and_every_place_is_noted():
    kept, bar = [], Bar()
    last = Pass(keep=noting(kept)).through(0, [1, 2, 4], add, bar)
    assert kept == [Place(1, 1, 1), Place(3, 2, 2), Place(7, 3, 3)]
    assert last is kept[-1]
    assert bar.n_seen == 3


def test_a_pass_goes_on_from_each_place_as_if_it_had_not_been_left():
    kept = []
    whole = Pass(keep=noting(kept)).through(0, [1, 2, 4], add, Bar())
    for place in kept:
        rest = [1, 2, 4][place.n_seen :]
        assert Pass(place.n_seen, place.sums).through(place.state, rest, add, Bar()) == whole


def test_an_epoch_that_ends_early_is_not_noted_as_one_that_goes_on():
    kept, bar = [], Bar()
    last = Pass(keep=noting(kept)).through(0, [1, 2, 4], add, bar, lambda at: at.state == 3)
    assert last == Place(3, 2, 2)
    assert kept == [Place(1, 1, 1)]
    assert bar.n_seen == 2


def test_a_pass_that_is_cut_short_notes_its_last_place_and_leaves_the_other_minibatches_unread():
    kept, minibatches = [], iter([1, 2, 4])
    whole = Pass(keep=noting(kept), most=2)
    assert whole.through(0, minibatches, add, Bar()) == kept[-1] == Place(3, 2, 2)
    assert list(minibatches) == [4]
    assert Pass(1, 1, most=2).through(1, [2, 4], add, Bar()) == Place(3, 2, 2)
    assert Pass(2, 2, most=2).through(3, [4], add, Bar()) == Place(3, 2, 2)
    assert whole.over(int, int).most == 2


@pytest.mark.parametrize(
    ("epochs", "n_steps", "expected"),
    [(0.5, 10, 5), (0.51, 10, 6), (0.7, 10, 7), (1.1 - 1, 10, 1), (1e-9, 10, 1), (0.5, 1, 1), (1.0, 10, 10), (7, 3, 3)],
)
def test_steps_of_a_share_of_an_epoch(epochs, n_steps, expected):
    assert steps_within(epochs, n_steps) == expected


def test_a_part_of_the_state_is_noted_within_the_whole():
    kept = []
    whole = Pass(2, 5, noting(kept))
    part = whole.over(lambda state: state["a"], lambda a: {"a": a, "b": "stays"})
    assert part.through(10, [1], add, Bar()) == Place(11, 3, 6)
    assert kept == [Place({"a": 11, "b": "stays"}, 3, 6)]


def test_without_a_checkpoint_nothing_is_noted():
    assert WHOLE.through(0, [], add, Bar()) == Place(0)
