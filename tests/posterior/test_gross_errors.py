"""Gross errors: their law, and its parameters by EM against a direct maximisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import geom, poisson

from scvi_lfm.posterior.anomalies.gross_errors import GrossErrors, fit_gross_errors, most_likely_burst


def test_law_is_a_burst_begun_by_an_expected_molecule():
    y, rate = np.array([1, 4, 30, 9.0]), np.array([0.0, 0.02, 3.0, 5.0])
    gross = GrossErrors(share=0.01, size=8.0)
    # SciPy counts trials, from 1 on
    burst = geom(1 / 9).logpmf(y + 1) - rate * np.log(8 / 9)
    expected = np.log(1 - np.exp(-0.01 * np.maximum(rate, 1e-12))) + burst
    given = torch.from_numpy(y), torch.from_numpy(rate)
    # 1 - exp(-x) by NumPy loses digits where x is tiny
    np.testing.assert_allclose(gross.log_density(*given)[1:], expected[1:], rtol=1e-9)
    assert gross.log_density(*given)[0] == pytest.approx(np.log(1e-14) + geom(1 / 9).logpmf(2), rel=1e-9)


def test_there_are_none_at_or_below_expectation():
    y, rate = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 7.0])
    own = torch.tensor([-0.5, -1.0, -2.0], dtype=torch.float64)
    gross = GrossErrors(share=0.5, size=5.0)
    assert (gross.log_density(y, rate) == -torch.inf).all()
    assert torch.equal(gross.added_to(own, y, rate), own)


def test_own_law_and_gross_errors_add_up():
    y, rate, own = torch.tensor([40.0]), torch.tensor([0.5]), torch.tensor([-90.0])
    gross = GrossErrors(share=1e-3, size=20.0)
    assert gross.added_to(own, y, rate).exp() == pytest.approx(
        float(own.double().exp() + gross.log_density(y, rate).exp())
    )


def test_no_burst_suits_a_count_better():
    y, rate = torch.tensor([1.0, 6.0, 40.0]), torch.tensor([0.2, 5.0, 0.01])
    best = most_likely_burst(y, rate)
    for size in np.geomspace(0.01, 1000, 400):
        added = y - rate
        burst = rate.log() + added * np.log(size / (1 + size)) - np.log1p(size)
        assert (burst <= best + 1e-4).all()
    assert ((best - (rate.log() - 1 - torch.log1p(y - rate))).abs() < 0.5).all()


@pytest.fixture(scope="module")
def mixture():
    """Counts of cells that expect 0.02 to 3 molecules, of cells that expect 10, and bursts."""
    rng = np.random.default_rng(0)
    n, share, epsilon, size = 40_000, 0.003, 0.004, 25.0
    rate = rng.lognormal(-1, 1, n).clip(0.02, 3)
    y = rng.poisson(rate)
    elsewhere = rng.random(n) < share
    y[elsewhere] = rng.poisson(10, elsewhere.sum())
    burst = rng.random(n) < -np.expm1(-epsilon * rate)
    y[burst] = np.ceil(rate[burst]) + rng.geometric(1 / (1 + size), burst.sum()) - 1
    return y.astype(float), rate, share, burst, elsewhere


def test_em_maximises_the_likelihood(mixture):
    y, rate, share, burst, elsewhere = mixture
    own, other = poisson(rate).logpmf(y), poisson(10).logpmf(y)
    given = [torch.from_numpy(part) for part in (own, other, y, rate)]
    gross, odd = fit_gross_errors(*given, share, rate.sum())

    def loss(parameters):
        epsilon, size = np.exp(parameters)
        law = GrossErrors(epsilon, size).log_density(torch.from_numpy(y), torch.from_numpy(rate)).numpy()
        terms = np.stack([own, np.log(share) + other, law])
        # the weight of the own law is one less the others'; to first order, their sums go off
        return -logsumexp(terms, axis=0).sum() + epsilon * rate.sum()

    best = minimize(loss, np.log([1e-3, 10]), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-6})
    assert np.log([gross.share, gross.size]) == pytest.approx(best.x, abs=0.01)
    # four standard errors of a rate and of a geometric mean from as many bursts as there are
    close = 4 / np.sqrt(burst.sum())
    assert gross.share == pytest.approx(0.004, rel=close)
    assert gross.size == pytest.approx(25, rel=close)
    big = y > rate + 10
    assert odd[torch.from_numpy(big & (burst | elsewhere))].min() > 0.9
    assert odd[torch.from_numpy(~(burst | elsewhere))].mean() < 0.002


def test_without_any_the_share_goes_to_nothing():
    rng = np.random.default_rng(1)
    rate = rng.lognormal(-1, 1, 5000)
    y = rng.poisson(rate).astype(float)
    given = [torch.from_numpy(part) for part in (poisson(rate).logpmf(y), poisson(10).logpmf(y), y, rate)]
    gross, odd = fit_gross_errors(*given, 1e-6, rate.sum())
    assert gross.share < 2e-3
    assert odd.mean() < 2e-3
    empty = torch.zeros(0, dtype=torch.float64)
    gross, odd = fit_gross_errors(empty, empty, empty, empty, 1e-3, 1.0)
    assert gross.share < 1e-20
    assert len(odd) == 0
