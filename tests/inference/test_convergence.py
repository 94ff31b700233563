from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_lfm.inference.convergence import remaining_gap, shares_missing


@given(
    ratio=st.floats(0.05, 0.95),
    missing=st.floats(1e-3, 1e3),
    limit=st.floats(-1e3, 1e3),
    gain=st.floats(1.0, 1e4),
    steps=st.integers(4, 8),
)
def test_is_exact_for_gains_that_shrink_geometrically(ratio, missing, limit, gain, steps):
    values = limit - missing * ratio ** np.arange(steps)
    expected = (limit - values[-1]) / gain
    assert remaining_gap(values.tolist(), limit - gain) == pytest.approx(expected, rel=1e-3, abs=1e-9)


@given(ratio=st.floats(0.05, 0.95), ahead=st.integers(1, 3), gain=st.floats(1.0, 1e4))
def test_what_is_still_to_come_is_not_missing(ratio, ahead, gain):
    values = 2 - ratio ** np.arange(4 + ahead)
    expected = remaining_gap(values.tolist(), 2 - gain)
    assert remaining_gap(values[:4].tolist(), 2 - gain, ahead=ahead) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_a_loss_is_noise_whatever_is_to_come():
    assert remaining_gap([-3.0, -2.0, -2.5], -5.0, ahead=1) == 0.5 / 3.0


@pytest.mark.parametrize("values", [[], [-1.0], [-1.0, -0.5]])
def test_knows_nothing_from_fewer_than_three_values(values):
    assert remaining_gap(values, -2.0) == np.inf


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-3.0, -2.0, -2.0], 0.0),
        ([-3.0, -2.0, -2.5], 0.5 / 3.0),
        ([-3.0, -2.5, -2.0], np.inf),
        ([-3.0, -2.5, -1.0], np.inf),
        ([-2.0, -2.5, -2.4], np.inf),
        # a fit that has gained nothing over no factors at all has not converged
        ([-9.0, -8.0, -7.9], np.inf),
    ],
)
def test_gains_that_stop_and_gains_that_do_not_shrink(values, expected):
    assert remaining_gap(values, -5.0) == expected


def test_only_the_last_values_count():
    assert remaining_gap([5.0, -7.0, -3.0, -2.0, -1.5], -9.0) == remaining_gap([-3.0, -2.0, -1.5], -9.0)
    slow = [-9.0, -5.0, -3.0, -1.8]
    assert remaining_gap([5.0, *slow], -9.5) == remaining_gap(slow, -9.5)


def test_gains_that_shrink_a_little_tell_nothing_unless_they_shrank_before():
    gains = [1.5, 1.2, 1.7, 2.8, 4.5, 6.2, 6.4, 4.0, 1.5, 0.4]
    values = np.cumsum([-30.0, *gains]).tolist()
    gaps = [remaining_gap(values[:number], -40.0) for number in range(3, len(values) + 1)]
    assert gaps[:6] == [np.inf] * 6
    assert gaps[6] == np.inf  # 4.0 after 6.4, the first to shrink, by less than half
    assert all(np.isfinite(gaps[7:]))


@given(ratio=st.floats(0.05, 0.95), ahead=st.integers(0, 2), gain=st.floats(1.5, 1e4), steps=st.integers(3, 8))
def test_shares_missing_are_exact_for_gains_that_shrink_geometrically(ratio, ahead, gain, steps):
    """The result is as many steps after the last pass as were said to come."""
    values = 2 - ratio ** np.arange(steps + ahead)
    trace = [*values[:steps], values[steps + ahead - 1]]
    expected = (2 - np.array(trace)) / gain
    if ratio > 0.5 and steps == 3:
        assert np.isnan(shares_missing(trace, 2 - gain, ahead)).all()
    else:
        np.testing.assert_allclose(shares_missing(trace, 2 - gain, ahead), expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_last_share_is_what_the_fit_was_stopped_by(ahead):
    passes, rank0 = [-3.0, -2.0, -1.6, -1.5], -5.0
    first = passes[-1] + remaining_gap(passes, rank0) * (passes[-1] - rank0) / (1 - remaining_gap(passes, rank0))
    left = remaining_gap(passes, rank0, ahead=ahead) * (first - rank0)
    for last in (-1.4, -1.5, -1.7):  # the result may gain more than expected, or lie below
        end = max(last, -1.5) + left
        found = shares_missing([*passes, last], rank0, ahead)
        np.testing.assert_allclose(found, [*((end - np.array(passes)) / (end - rank0)), left / (end - rank0)])


@pytest.mark.parametrize(("values", "rank0"), [([], -1.0), ([-1.0], -2.0), ([-3.0, -2.0, -1.0, -1.0], -5.0)])
def test_no_share_is_known_before_gains_shrink(values, rank0):
    assert len(shares_missing(values, rank0)) == len(values)
    assert np.isnan(shares_missing(values, rank0)).all()


@pytest.mark.parametrize("rank0", [5.0, np.nan])
def test_no_share_is_missing_of_no_gain(rank0):
    assert np.isnan(shares_missing([-3.0, -2.0, -1.9, -1.9], rank0)).all()
