"""Quantiles and density of a Student t plus a Normal, against quadrature and against either alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad, trapezoid
from scipy.stats import norm
from scipy.stats import t as student

from scvi_lfm.model.likelihoods import student_t
from scvi_lfm.model.likelihoods.student_t import LARGEST_RATIO


def law(mean, sd, sigma, df):
    mean, sd, sigma, df = (torch.tensor(values, dtype=torch.float64) for values in (mean, sd, sigma, df))
    return student_t.STUDENT_T.law(mean, sd.square(), sigma, df)


@pytest.mark.parametrize("df", [2.2, 4.0, 50.0])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.9])
@pytest.mark.half_slow
def test_the_distribution_function_there_is_the_level(df, level):
    mean, sd, sigma = np.array([0.3, -1.0, 2.0]), np.array([0.05, 0.8, 3.0]), np.array([1.0, 0.5, 0.7])
    x, z = law(mean, sd, sigma, df).quantile(level), np.linspace(-9, 9, 10_001)[:, None]
    below = student.cdf((x - mean - sd * z) / sigma, df) * norm.pdf(z)
    np.testing.assert_allclose(trapezoid(below, z, axis=0), level, rtol=0, atol=2e-4)


@pytest.mark.parametrize("df", [2.2, 4.0, 50.0])
def test_the_density_is_the_integral_over_eta(df, monkeypatch):
    monkeypatch.setattr("scvi_lfm.model.likelihoods.student_t.ENTRIES_PER_BLOCK", 3)
    y, mean = np.array([0.1, 2.5, -10.0, 4.0, 0.0]), np.array([0.3, -1.0, 2.0, 0.0, 0.2])
    sd, sigma = np.array([0.05, 0.8, 3.0, 20.0, 0.0]), np.array([1.0, 0.5, 0.7, 1.0, 0.4])

    def density(eta, k):
        return student.pdf(y[k], df, eta, sigma[k]) * norm.pdf(eta, mean[k], sd[k])

    ends = [(m - 9 * s, m + 9 * s) for m, s in zip(mean, sd, strict=True)]
    expected = [quad(density, *ends[k], (k,), points=[mean[k]], limit=500, epsabs=0)[0] for k in range(4)]
    expected.append(student.pdf(y[4], df, mean[4], sigma[4]))
    found = law(mean, sd, sigma, df).log_density(torch.from_numpy(y))
    np.testing.assert_allclose(found, np.log(expected), rtol=0, atol=1e-5)


def test_certain_eta_leaves_the_student_t():
    x = law(np.zeros(2), np.zeros(2), np.array([1.0, 2.0]), 3.0).quantile(0.95)
    np.testing.assert_allclose(x, student.ppf(0.95, 3) * np.array([1, 2]), rtol=1e-6)


def test_far_wider_eta_leaves_a_normal():
    ratio = np.array([0.99, 1.01]) * LARGEST_RATIO
    x = law(np.zeros(2), ratio, np.ones(2), 4.0).quantile(0.95)
    np.testing.assert_allclose(x, norm.ppf(0.95) * np.hypot(ratio, np.sqrt(2)), rtol=1e-3)


def test_the_density_of_far_wider_eta_is_a_normals():
    sd = np.array([0.99, 1.01]) * LARGEST_RATIO
    found = law(np.zeros(2), sd, np.ones(2), 4.0).log_density(torch.full((2,), 5.0, dtype=torch.float64))
    np.testing.assert_allclose(found, norm.logpdf(5, 0, np.hypot(sd, np.sqrt(2))), rtol=0, atol=2e-3)


@pytest.mark.parametrize("df", [2.2, 4.0, 50.0])
def test_tails_are_those_of_the_quantile(df):
    wide = law(np.zeros(3), np.array([0.05, 0.8, 30.0]), np.ones(3), df)
    x = torch.from_numpy(wide.quantile(0.1))
    np.testing.assert_allclose(wide.lower_tail(x), 0.1, rtol=0, atol=2e-4)
    np.testing.assert_allclose(wide.upper_tail(x), 0.9, rtol=0, atol=2e-4)


def test_the_variance_is_scipys():
    sigma = np.array([0.5, 2.0])
    found = law(np.zeros(2), np.array([0.0, 3.0]), sigma, 4.5).variance()
    np.testing.assert_allclose(found, student.var(4.5) * sigma**2 + [0, 9])


@pytest.mark.parametrize("level", [0.001, 0.3, 0.95])
@pytest.mark.parametrize("df", [2.2, 4.0, 50.0])
def test_quantiles_between_those_of_the_grid_are_right(df, level):
    ratio = np.array([0.0, 0.02, 0.33, 1.7, 6.1, 24.9])
    x, z = law(np.zeros(6), ratio, np.ones(6), df).quantile(level), student_t.NODES[:, None]
    weight = norm.pdf(z) / norm.pdf(z).sum()
    apart = x - ratio * z
    error = (student.cdf(apart, df) * weight).sum(0) - level
    # measured: 2e-7 of the scale
    assert (np.abs(error / (student.pdf(apart, df) * weight).sum(0)) < 2e-6 * np.hypot(1, x)).all()


def test_the_work_is_in_proportion_to_the_entries(monkeypatch):
    solved, solve = [], student_t._solve
    monkeypatch.setattr(
        student_t, "_solve", lambda level, ratio, df: solved.append(len(ratio)) or solve(level, ratio, df)
    )
    sd = np.exp(np.linspace(-2, 2, 40))
    alone = [law(np.zeros(1), sd[[k]], np.ones(1), 4.0).quantile(0.9)[0] for k in range(40)]
    assert max(solved) == 2
    np.testing.assert_allclose(law(np.zeros(40), sd, np.ones(40), 4.0).quantile(0.9), alone, rtol=1e-11)
    law(np.zeros(10_000), np.linspace(0, 25, 10_000), np.ones(10_000), 4.0).quantile(0.9)
    assert solved[-1] == len(student_t.GRID)
