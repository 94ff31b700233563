from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bernoulli, nbinom, poisson

from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.model.likelihoods.negative_binomial import MAX_VARIANCE, OfCounts

LEVELS = (0.001, 0.025, 0.05, 0.5, 0.95, 0.999)


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def simulated(mean, var, phi, *, n=400_000, seed=0):
    """Counts whose log rate is Normal, at one mean, variance and dispersion."""
    rng = np.random.default_rng(seed)
    rate = np.exp(mean + np.sqrt(var) * rng.standard_normal(n))
    return rng.poisson(rate * rng.gamma(1 / phi, phi, n)) if phi else rng.poisson(rate)


def law(likelihood, mean, var, phi):
    return COUNTS[likelihood].law(tensor(mean), tensor(var), tensor(phi))


def certain(likelihood, rate, phi):
    """With eta known."""
    return OfCounts(COUNTS[likelihood], tensor(rate), (tensor(phi),))


@pytest.mark.parametrize(("mean", "var"), [(-2.0, 0.01), (0.5, 0.1), (2.0, 0.3)])
@pytest.mark.parametrize(
    ("likelihood", "phi"), [("negative_binomial", 0.2), ("negative_binomial", 2.0), ("poisson", 0)]
)
def test_moments_are_those_of_simulated_counts(likelihood, mean, var, phi):
    y = simulated(mean, var, phi)
    found = law(likelihood, [mean], [var], [phi])
    assert float(found.mean()) == pytest.approx(y.mean(), rel=0.02)
    assert float(found.variance()) == pytest.approx(y.var(), rel=0.06)


def presence(mean, var):
    """P(y = 1) and P(y = 0) where the log rate is Normal, by the trapezoid rule."""
    z = np.linspace(-12, 12, 4001)
    weight = np.exp(-(z**2) / 2)
    rate = np.exp(np.add.outer(mean, np.sqrt(var) * z))
    return -np.expm1(-rate) @ weight / weight.sum(), np.exp(-rate) @ weight / weight.sum()


@pytest.mark.parametrize(("var", "close"), [(0.0, 1e-6), (0.3, 1e-3), (1.0, 3e-3), (4.0, 0.05), (20.0, 0.15)])
def test_presence_has_its_probability(var, close):
    mean = np.linspace(-15, 6, 43)
    found = law("bernoulli", mean, 0 * mean + var, 0 * mean)
    present, absent = presence(mean, var)
    np.testing.assert_allclose(found.mean(), present, rtol=close)
    likely = absent > 1e-5
    np.testing.assert_allclose((1 - found.mean())[likely], absent[likely], rtol=close)
    np.testing.assert_allclose(found.variance()[likely], (present * absent)[likely], rtol=2 * close)


def test_what_is_always_there_is_expected_to_be_there():
    # a rate of 150 known to a factor of 7: moments of the rate say 0.18
    found = COUNTS["bernoulli"].law(torch.tensor([5.0]), torch.tensor([4.0]), torch.zeros(1))
    assert float(found.mean()) > 0.99


def test_rates_beyond_float32_are_certain():
    mean, var = torch.tensor([-200.0, 200.0, 200.0]), torch.tensor([1.0, 0.0, 1e6])
    found = COUNTS["bernoulli"].law(mean, var, torch.zeros(3))
    np.testing.assert_allclose(found.mean(), [0, 1, 1], atol=1e-6)
    assert torch.isfinite(found.seen).all()


def test_certain_rates_leave_the_likelihood_as_it_is():
    eta, phi = tensor([-1.0, 0.0, 3.0]), tensor([0.0, 0.5, 2.0])
    found = COUNTS["negative_binomial"].law(eta, torch.zeros_like(eta), phi)
    np.testing.assert_allclose(found.seen, eta.exp())
    np.testing.assert_allclose(*found.parameters, phi)


def test_small_variances_keep_their_digits():
    found = COUNTS["poisson"].law(torch.zeros(1), torch.tensor([1e-6]), torch.zeros(1))
    assert float(*found.parameters) == pytest.approx(1e-6, rel=1e-5)
    assert float(found.seen) == pytest.approx(1, abs=1e-5)


def test_variances_without_bound_stay_finite():
    mean, var = torch.tensor([0.0, -50.0]), torch.tensor([1e6, torch.inf])
    found = COUNTS["negative_binomial"].law(mean, var, torch.ones(2))
    assert torch.isfinite(found.seen).all()
    np.testing.assert_allclose(*found.parameters, np.expm1(MAX_VARIANCE) * 2 + 1, rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_quantiles_of_the_negative_binomial(level):
    rate, phi = np.meshgrid([1e-3, 0.3, 4.0, 70.0, 3000.0], [0.05, 1.0, 8.0])
    found = certain("negative_binomial", rate, phi).quantile(level)
    np.testing.assert_array_equal(found, nbinom.ppf(level, 1 / phi, 1 / (1 + phi * rate)))


@pytest.mark.parametrize("level", LEVELS)
def test_quantiles_of_certain_poisson_rates(level):
    rate = np.array([1e-3, 0.3, 4.0, 70.0, 3000.0])
    found = certain("poisson", rate, 0 * rate).quantile(level)
    np.testing.assert_array_equal(found, poisson.ppf(level, rate))


@pytest.mark.parametrize("level", LEVELS)
def test_quantiles_of_presence(level):
    rate, phi = np.meshgrid([1e-4, 0.05, 0.7, 9.0], [0.0, 0.5])
    absence = np.where(phi > 0, (1 + phi * rate) ** (-1 / np.maximum(phi, 0.1)), np.exp(-rate))
    found = certain("bernoulli", rate, phi).quantile(level)
    np.testing.assert_array_equal(found, bernoulli.ppf(level, 1 - absence))


@pytest.mark.parametrize(("likelihood", "phi"), [("negative_binomial", 0.5), ("poisson", 0.0), ("bernoulli", 0.0)])
def test_quantiles_hold_what_they_promise_of_simulated_counts(likelihood, phi):
    y = simulated(1.0, 0.2, phi)
    y = np.minimum(y, 1) if likelihood == "bernoulli" else y
    found = law(likelihood, [1.0], [0.2], [phi])
    for level in (0.05, 0.5, 0.95):
        quantile = found.quantile(level)
        # the mixture is not exactly the law that has its moments
        assert (y <= quantile).mean() > level - 0.01
        assert (y < quantile).mean() < level + 0.01


def test_moments_in_float32_give_quantiles():
    mean, var, phi = torch.tensor([[0.1, 2.0]]), torch.tensor([[0.2, 0.1]]), torch.tensor([0.1, 0.3])
    found = COUNTS["negative_binomial"].law(mean, var, phi)
    assert found.quantile(0.5).shape == (1, 2)
