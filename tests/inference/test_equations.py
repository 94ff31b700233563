"""Normal equations against dense solves in float64, and the bound on steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.inference.equations import CLOSE, TRUST, NewtonStep, solve_rows
from scvi_lfm.linalg import batch_inverse
from scvi_lfm.linalg.covariances import Packed
from scvi_lfm.model import Gaussian

ROWS, K = 7, 4
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def rows(general_prior):
    """H of some weighted vectors (1, B), h, and a prior that is no multiple of anything."""
    rng = np.random.default_rng(0)
    weight = rng.gamma(1, size=(ROWS, 12))
    v = np.concatenate([np.ones((ROWS, 12, 1)), rng.standard_normal((ROWS, 12, K - 1))], axis=2)
    H = np.einsum("ij,ijk,ijl->ikl", weight, v, v)
    return H, 3 * rng.standard_normal((ROWS, K)), general_prior(K)


def packed(full):
    lower = np.tril_indices(full.shape[-1])
    return torch.from_numpy(full[..., lower[0], lower[1]])


def exact(H, h, prior):
    """Mean and covariance of each row by inversion."""
    P = np.linalg.inv(prior.cov.numpy())
    C = np.linalg.inv(P + H)
    return np.einsum("ikl,il->ik", C, P @ prior.mean.numpy() + h), C


def solve(H, h, prior, current, family="row_block"):
    current = torch.as_tensor(current)
    return solve_rows(packed(H), torch.from_numpy(h), prior, family, current).within(current)


def change(H, step):
    """Root mean square of v . step over the entries of each row, by weight."""
    return np.sqrt(np.einsum("ik,ikl,il->i", step, H, step) / H[:, 0, 0])


def test_solves_the_equations_with_a_general_prior(rows, dense):
    H, h, prior = rows
    mean, C = exact(H, h, prior)
    near = mean + 0.01 * np.random.default_rng(1).standard_normal(mean.shape)
    solved = solve(H, h, prior, near)
    np.testing.assert_allclose(solved.mean, mean, **EXACT)
    np.testing.assert_allclose(np.asarray(dense(Packed(solved.cov))), C, **EXACT)
    again = solve(H, h, prior, solved.mean)
    np.testing.assert_allclose(again.missing, 0, atol=1e-18)


def test_mean_field_has_the_same_means_and_the_precisions_alone(rows, dense):
    H, h, prior = rows
    mean, _ = exact(H, h, prior)
    solved = solve(H, h, prior, mean, "mean_field")
    np.testing.assert_allclose(solved.mean, mean, **EXACT)
    precision = np.diagonal(H + np.linalg.inv(prior.cov.numpy()), axis1=1, axis2=2)
    np.testing.assert_allclose(np.asarray(dense(Packed(solved.cov))), [np.diag(1 / row) for row in precision], **EXACT)


def test_expects_to_gain_what_the_quadratic_model_says(rows):
    H, h, prior = rows
    mean, C = exact(H, h, prior)
    P = np.linalg.inv(prior.cov.numpy())
    current = mean + 0.3 * np.random.default_rng(2).standard_normal(mean.shape)

    def model(x):
        prior_term = np.einsum("ik,kl,il->i", x - prior.mean.numpy(), P, x - prior.mean.numpy())
        return (h * x).sum(1) - 0.5 * np.einsum("ik,ikl,il->i", x, H, x) - 0.5 * prior_term

    np.testing.assert_allclose(solve(H, h, prior, current).missing, model(mean) - model(current), rtol=1e-9)


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
def test_covariances_of_rows_whose_eta_varies_much_go_a_share_of_their_way(rows, dense, family):
    H, h, prior = rows
    H = H * np.array([1e-6, 1e-4, 1e-2, 0.1, 1, 1, 1])[:, None, None]
    current = torch.zeros(ROWS, K, dtype=torch.float64)
    solved = solve_rows(packed(H), torch.from_numpy(h), prior, family, current)
    whole = np.asarray(dense(Packed(solved.cov)))
    variance = np.einsum("ikl,ikl->i", H, whole) / H[:, 0, 0]
    np.testing.assert_allclose(solved.variance, variance, rtol=1e-9)
    assert (variance > 1.5).any()
    assert (variance < 0.8).any()
    before = packed(np.eye(K) * np.linspace(0.1, 2, ROWS)[:, None, None]).numpy()
    damped = solved.damped(torch.from_numpy(before))
    share = np.minimum(1, 1 / variance)[:, None]
    np.testing.assert_allclose(damped.cov, before + share * (solved.cov.numpy() - before), rtol=1e-9, atol=1e-12)
    # what of the variances is left, in nats to the second order
    after = np.asarray(dense(Packed(damped.cov)))
    short = 1 - np.diagonal(after, axis1=1, axis2=2) / np.diagonal(whole, axis1=1, axis2=2)
    np.testing.assert_allclose(damped.missing - solved.missing, 0.25 * (short**2).sum(1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
def test_without_a_start_it_solves_at_once(rows, dense, family):
    H, h, prior = rows
    weight = 0.5 + np.random.default_rng(6).random(ROWS)
    wide = np.full((ROWS, K + 1, K + 1), np.nan)
    wide[:, 1:, 1:] = H
    rows_, columns = np.tril_indices(K)
    part = torch.from_numpy((rows_ + 1) * (rows_ + 2) // 2 + columns + 1)
    mean, C = exact(H * weight[:, None, None], h * weight[:, None], prior)
    solved = solve_rows(packed(wide), torch.from_numpy(h), prior, family, weight=torch.from_numpy(weight), part=part)
    if family == "mean_field":
        precision = H * weight[:, None, None] + np.linalg.inv(prior.cov.numpy())
        C = np.stack([np.diag(1 / np.diag(P)) for P in precision])
    np.testing.assert_allclose(solved.mean, mean, **EXACT)
    np.testing.assert_allclose(np.asarray(dense(Packed(solved.cov))), C, **EXACT)
    np.testing.assert_allclose(solved.log_det, np.linalg.slogdet(C)[1], rtol=1e-9)


def test_without_a_start_float32_information_costs_the_means_little(general_prior):
    """The second step leaves the means at what float64 makes of the same rounded equations."""
    rng = np.random.default_rng(7)
    v = np.column_stack([np.ones(50), np.ones(50) + 0.03 * rng.standard_normal(50), rng.standard_normal(50)])
    H = packed((1e3 * v.T @ v)[None]).float()
    exact_H = np.zeros((1, 3, 3))
    lower = np.tril_indices(3)
    exact_H[:, lower[0], lower[1]] = exact_H[:, lower[1], lower[0]] = H.double().numpy()
    h, prior = rng.standard_normal((1, 3)), general_prior(3)
    mean, _ = exact(exact_H, h, prior)
    solved = solve_rows(H, torch.from_numpy(h), prior, "row_block")
    # one float32 solve is off by its condition, some 1e3, times 6e-8; the second by the square of that
    np.testing.assert_allclose(solved.mean, mean, rtol=0, atol=1e-7 * np.abs(mean).max())


@pytest.mark.parametrize("distance", [0.1, 3.0, 1e4])
def test_no_step_changes_log_rates_by_more_than_trusted(rows, dense, distance):
    H, h, prior = rows
    mean, C = exact(H, h, prior)
    current = mean + distance * np.random.default_rng(3).standard_normal(mean.shape)
    solved = solve(H, h, prior, current)
    step, whole = solved.mean.numpy() - current, mean - current
    asked = change(H, whole)
    assert (change(H, step) <= TRUST * (1 + 1e-9)).all()
    # in the direction of the solution, and as far as allowed
    np.testing.assert_allclose(step, whole * np.minimum(1, TRUST / asked)[:, None], rtol=1e-7, atol=1e-10)
    assert distance < 1 or (asked > TRUST).all()
    # what is known does not depend on the step
    np.testing.assert_allclose(np.asarray(dense(Packed(solved.cov))), C, **EXACT)


def test_the_bound_is_on_the_entries_log_rates(general_prior):
    """H of entries v with weights w: the bound holds for the root mean square of v . step."""
    rng = np.random.default_rng(4)
    w, v = rng.gamma(1, size=30), np.column_stack([np.ones(30), rng.standard_normal((30, 2))])
    H = (v.T * w) @ v
    solved = solve(H[None], np.array([[500.0, -300, 200]]), general_prior(3), np.zeros((1, 3)))
    moved = v @ solved.mean[0].numpy()
    assert np.sqrt((w * moved**2).sum() / w.sum()) == pytest.approx(TRUST, rel=1e-9)


def test_steps_lead_to_the_solution_from_afar(rows):
    H, h, prior = rows
    mean, _ = exact(H, h, prior)
    current = torch.from_numpy(mean + 5.0)
    for _ in range(60):
        current = solve(H, h, prior, current).mean
    np.testing.assert_allclose(current, mean, **EXACT)


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
def test_rows_that_say_nothing_get_the_prior_in_one_step(general_prior, dense, family):
    prior = general_prior(K)
    nothing = np.zeros((2, K, K)), np.zeros((2, K))
    solved = solve(*nothing, prior, np.full((2, K), 9.0), family)
    np.testing.assert_allclose(solved.mean, prior.mean.expand(2, -1), **EXACT)
    cov = prior.cov.numpy()
    expected = np.diag(1 / np.diag(np.linalg.inv(cov))) if family == "mean_field" else cov
    np.testing.assert_allclose(np.asarray(dense(Packed(solved.cov))), [expected] * 2, **EXACT)


def test_blocks_of_rows_change_nothing(rows, monkeypatch):
    H, h, prior = rows
    current = np.ones((ROWS, K))
    whole = solve(H, h, prior, current)
    monkeypatch.setattr(batch_inverse, "VALUES_PER_BLOCK", 3 * K**2)
    monkeypatch.setattr(batch_inverse, "LEAST_ROWS", 1)
    assert len(list(batch_inverse.row_blocks(ROWS, K, torch.device("cpu")))) == 3
    parts = solve(H, h, prior, current)
    for name in ("mean", "cov", "missing"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-14)


def test_scales_that_relevance_determination_sent_to_nothing_do_no_harm(rows, dense):
    """Variances of 1e-12 beside ones, in float32: the factor stays at zero and the others at their solution."""
    H, h, _ = rows
    var = torch.tensor([1.0, 1e-12, 0.5, 1e-12], dtype=torch.float64)
    prior = Gaussian(torch.zeros(K, dtype=torch.float64), torch.diag(var))
    mean, C = exact(H, h, prior)
    H32, h32 = packed(H).float(), torch.from_numpy(h).float()
    current = torch.zeros(ROWS, K)
    for _ in range(60):
        solved = solve_rows(H32, h32, prior, "row_block", current).within(current)
        current = solved.mean
    np.testing.assert_allclose(solved.mean, mean, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.asarray(dense(Packed(solved.cov))), C, rtol=1e-3, atol=1e-6)
    assert (np.linalg.eigvalsh(np.asarray(dense(Packed(solved.cov)))) > -1e-8).all()


def test_float32_errors_of_a_step_are_made_good_by_the_next(general_prior):
    """Large information with directions that are nearly one: a single float32 solve is off, steps from it are not."""
    rng = np.random.default_rng(5)
    v = np.column_stack([np.ones(50), np.ones(50) + 0.03 * rng.standard_normal(50), rng.standard_normal(50)])
    H, truth = (1e5 * v.T @ v)[None], rng.standard_normal((1, 3))
    prior = general_prior(3)
    mean, _ = exact(H, np.einsum("ikl,il->ik", H, truth), prior)
    current = torch.from_numpy(mean + 0.05).float()
    for _ in range(6):
        # the engine's target at the current mean: what is left to explain, by weight
        target = torch.from_numpy(np.einsum("ikl,il->ik", H, truth)).float()
        current = solve_rows(packed(H).float(), target, prior, "row_block", current).within(current).mean
    rates = v @ (current.numpy() - mean)[0]
    assert np.abs(rates).max() < 1e-4


def test_two_steps_of_one_kind_tell_where_they_end():
    """Steps that shrink by one factor in one direction, whichever it is, lead to the end at once."""
    end, way = torch.tensor([[1.0, -2.0]] * 4).double(), torch.tensor([[3.0, 1.0]] * 4).double()
    left = torch.tensor([0.7, 0.2, -0.6, 0.0]).double()[:, None]  # of the way, after each step
    nats = torch.full((4,), CLOSE / 2).double()
    last = NewtonStep(end + way, (left - 1) * way, nats)
    move = NewtonStep(end + left * way, (left - 1) * left * way, nats * left[:, 0].square())
    cov = packed(np.eye(2) * np.array([0.3, 5.0]) * np.ones((4, 1, 1)))
    np.testing.assert_allclose(move.mixed(last, cov), end, rtol=1e-12)
    np.testing.assert_allclose(move.at(torch.tensor([1])).mixed(last.at(torch.tensor([1])), cov[1:2]), end[:1])


@pytest.mark.parametrize(("before", "now"), [(CLOSE / 2, CLOSE / 2), (4 * CLOSE, 2 * CLOSE)])
def test_steps_that_do_not_come_closer_tell_nothing(before, now):
    start, step = torch.ones(1, 2).double(), torch.full((1, 2), 0.3).double()
    last = NewtonStep(start - 0.5, torch.full((1, 2), 0.5).double(), torch.tensor([before]))
    mixed = NewtonStep(start, step, torch.tensor([now])).mixed(last, packed(np.eye(2)[None]))
    np.testing.assert_array_equal(mixed, start + step)


def test_steps_that_hardly_shrink_go_on_four_times_as_far_at_the_most():
    start, step = torch.zeros(1, 2).double(), torch.full((1, 2), 0.1).double()
    last = NewtonStep(start - 0.1, step * 1.0001, torch.tensor([0.2]))
    mixed = NewtonStep(start, step, torch.tensor([0.1])).mixed(last, packed(np.eye(2)[None]))
    np.testing.assert_allclose(mixed, 0.5 * torch.ones(1, 2), rtol=1e-3)
