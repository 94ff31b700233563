"""The bound of every smaller rank, against fits with that many factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from as_blocks import as_blocks
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.ranks import normal_curve
from scvi_lfm.inference.normal.sweep import local_step, sweep
from scvi_lfm.inference.ranks import RankCurve, effective_factors
from scvi_lfm.inference.state import Problem

N, M = 150, 80


@pytest.fixture(scope="module")
def batch(whole_batch):
    return whole_batch(lfm.datasets.simulate(N, M, 4, factor_scales=[1.0, 0.8, 0.6, 0.5]).X)


def settle(problem, step, batch):
    for _ in range(60):
        step = sweep(problem, step.globals, as_blocks(batch))
    return step


@pytest.mark.parametrize("family", ["row_block", pytest.param("mean_field", marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", ["shared", pytest.param("gene", marks=pytest.mark.slow)])
def test_the_curve_lies_just_below_the_bound_of_fits_of_each_rank(batch, first_step, noise, family):
    problem = Problem(N, M, family, noise)
    step = settle(problem, first_step(problem, batch, 7), batch)
    curve = np.array(normal_curve(problem, step).elbo)
    again = [settle(problem, first_step(problem, batch, k), batch) for k in range(6)]
    refits = np.array([float(elbo(s.globals, s.statistics, s.cell_cov, N)) / (N * M) for s in again])
    gain = refits.max() - refits[0]
    assert (curve[:5] <= refits[:5] + 1e-9).all()
    # with the four true factors the cells have more to relearn than with three of them
    assert (refits[1:5] - curve[1:5]).max() < 0.03 * gain
    assert curve.argmax() == refits[:5].argmax() == 4


def test_the_curve_ends_at_the_bound_of_the_fit(batch, first_step):
    problem = Problem(N, M, "row_block", "shared")
    step = settle(problem, first_step(problem, batch, 5), batch)
    at_end = float(elbo(step.globals, step.statistics, step.cell_cov, N)) / (N * M)
    assert normal_curve(problem, step).elbo[-1] == pytest.approx(at_end, rel=1e-12)


def test_effective_factors_are_the_shares_that_means_have_of_squares(batch, first_step):
    problem = Problem(N, M, "row_block", "shared")
    step = settle(problem, first_step(problem, batch, 6), batch)
    block = local_step(problem, step.globals)(batch)
    means = block.mean[:, 1:].square().mean(0).numpy()
    share = means / (means + block.cov.diagonal()[1:].numpy())
    found = normal_curve(problem, step).effective
    assert found[0] == 0
    # one more local step than the statistics have seen
    np.testing.assert_allclose(np.diff(found), share, atol=0.01)
    assert 3 < found[4] < 4
    assert found[-1] - found[4] < 0.5


def test_a_factor_that_is_not_known_counts_nothing():
    moment, cov = torch.eye(4, dtype=torch.float64), torch.diag(torch.tensor([0.1, 0.25, 1.0], dtype=torch.float64))
    assert effective_factors(moment, cov, 2) == pytest.approx([0, 0.75, 0.75])


def test_earlier_fits_continue_a_curve():
    curve = RankCurve([-3.0, -1.0], [0, 0.9]).followed_by(RankCurve([-4.0, -3.0, -2.0], [0.0, 0.8, 1.5]))
    assert curve == RankCurve([-3.0, -1.0, -2.0], [0, 0.9, 1.5])
    assert curve.best == 1


@pytest.mark.parametrize(
    ("errors", "best"), [(None, 3), ([0, 1, 1, 0.9], 3), ([0, 1, 1, 1.1], 2), ([0, 1, 11, 2], 1), ([0, 8, 11, 2], 0)]
)
def test_a_factor_has_to_add_more_than_a_standard_error(errors, best):
    assert RankCurve([-20.0, -13.0, -3.0, -2.0, -5.0], [0.0] * 5, gain_error=errors and [*errors, 0]).best == best


def test_errors_of_earlier_fits_continue_those_of_a_curve():
    earlier = RankCurve([-4.0, -3.0, -2.0], [0.0, 0.8, 1.5], gain_error=[0.0, 0.2, 0.3])
    curve = RankCurve([-3.0, -1.0], [0, 0.9], gain_error=[0.0, 0.1]).followed_by(earlier)
    assert curve.gain_error == [0.0, 0.1, 0.3]
