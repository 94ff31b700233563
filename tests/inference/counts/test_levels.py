"""Steps for levels: averages over eta, and thresholds at the maximum of what entries say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scvi_lfm.inference.counts.cell_step import expected_steps, nodes_of
from scvi_lfm.model.likelihoods import ordinal
from scvi_lfm.model.noise import level_parameters

LOWEST, THRESHOLDS = 2.0, (-1.1, 0.2, 0.9)
LEVELS = torch.tensor([LOWEST, *THRESHOLDS], dtype=torch.float64)


def test_steps_are_averages_over_eta():
    """Against integrals on a grid; three nodes are exact to the fifth degree, and scores are smooth."""
    y = torch.arange(2.0, 6.0, dtype=torch.float64)[:, None].expand(4, 3)
    eta = torch.tensor([-1.2, 0.4, 2.3], dtype=torch.float64).expand(4, 3)
    half = torch.tensor([0.05, 0.1, 0.02], dtype=torch.float64).expand(4, 3)
    weight, score, seen = expected_steps(ordinal.ORDINAL, y, eta, half, level_parameters(LEVELS))
    grid = np.linspace(-8, 8, 4001)
    share = norm.pdf(grid) / norm.pdf(grid).sum()
    for i, j in np.ndindex(4, 3):
        at = torch.from_numpy(float(eta[i, j]) + np.sqrt(2 * float(half[i, j])) * grid)
        exact = ordinal.weight_and_score(torch.full_like(at, float(y[i, j])), at, *level_parameters(LEVELS))
        for found, values in zip((weight, score), exact, strict=True):
            assert float(found[i, j]) == pytest.approx(share @ values.numpy(), abs=3e-3)
    torch.testing.assert_close(seen, eta)


def test_nodes_have_the_moments_of_a_normal():
    mean, half = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.32], dtype=torch.float64)
    shares, nodes = zip(*nodes_of(mean, half), strict=True)
    assert sum(shares) == pytest.approx(1)
    for power, moment in enumerate((1, 0, 0.64, 0, 3 * 0.64**2, 0)):
        found = sum(share * (node - mean) ** power for share, node in zip(shares, nodes, strict=True))
        assert float(found) == pytest.approx(moment, abs=1e-12)


@pytest.fixture
def entries():
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(60, 40))
    y = torch.from_numpy(ordinal.sample(eta, np.float64(1), np.float64(LOWEST), *THRESHOLDS, rng).astype(float))
    return y, torch.from_numpy(eta), torch.from_numpy(rng.random((60, 40)) < 0.7)


def test_statistics_of_thresholds_are_derivatives(entries):
    y, eta, observed = entries
    found = ordinal.threshold_statistics(y[observed], eta[observed], LEVELS[0], LEVELS[1:])

    def total(thresholds):
        return ordinal.log_density(y, eta, torch.ones(()), LEVELS[0], *thresholds)[observed].sum()

    thresholds = LEVELS[1:].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(thresholds), thresholds)
    torch.testing.assert_close(found[:, 0], gradient, rtol=1e-8, atol=1e-8)
    # the information is the mean of minus the second derivative over values drawn from the model
    p = torch.stack(
        [
            ordinal.log_density(
                torch.full_like(eta, LOWEST + k), eta, torch.ones(()), LEVELS[0], *THRESHOLDS_AS_TENSORS
            )
            for k in range(4)
        ]
    ).exp()

    def expected(thresholds):
        each = [
            ordinal.log_density(torch.full_like(eta, LOWEST + k), eta, torch.ones(()), LEVELS[0], *thresholds)
            for k in range(4)
        ]
        return (p * torch.stack(each))[:, observed].sum()

    information = -torch.autograd.functional.hessian(expected, LEVELS[1:].clone())
    torch.testing.assert_close(found[:, 1], information.diagonal(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[:-1, 2], information.diagonal(1), rtol=1e-6, atol=1e-8)
    assert information[0, 2].abs() < 1e-6 * information[0, 0]


THRESHOLDS_AS_TENSORS = tuple(LEVELS[1:])


def test_steps_lead_to_the_thresholds_of_highest_likelihood(entries):
    y, eta, _ = entries
    thresholds = torch.tensor([-0.3, 0.0, 0.1], dtype=torch.float64)
    before = -torch.inf
    for _ in range(30):
        statistics = ordinal.threshold_statistics(y, eta, LEVELS[0], thresholds)
        thresholds = ordinal.update_thresholds(thresholds, statistics)
        assert (thresholds.diff() > 0).all()
        value = ordinal.log_density(y, eta, torch.ones(()), LEVELS[0], *thresholds).sum()
        assert value > before - 1e-9 * abs(float(value))
        before = value
    assert statistics[:, 0].abs().max() < 1e-5
    # their standard errors, from the information, are some 0.03
    np.testing.assert_allclose(thresholds, THRESHOLDS, atol=0.15)


def test_a_level_that_is_not_seen_leaves_the_others_right(entries):
    y, eta, _ = entries
    y = torch.where(y == 4, 5.0, y)
    thresholds = LEVELS[1:].clone()
    for _ in range(40):
        thresholds = ordinal.update_thresholds(thresholds, ordinal.threshold_statistics(y, eta, LEVELS[0], thresholds))
    assert thresholds[2] - thresholds[1] < 0.01
    np.testing.assert_allclose(thresholds[:2], THRESHOLDS[:2], atol=0.15)
    assert thresholds.isfinite().all()
