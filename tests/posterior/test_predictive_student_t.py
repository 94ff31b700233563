"""Quantiles and density of a Student t plus a Normal, against quadrature and against either alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad, trapezoid
from scipy.stats import norm
from scipy.stats import t as student

from scvi_lfm.model.likelihoods import student_t
from scvi_lfm.posterior.predictive import Moments
from scvi_lfm.posterior.predictive_student_t import LARGEST_RATIO, log_density, quantile


def found(level, mean, sd, sigma, df):
    mean, sd, sigma = (torch.tensor(values, dtype=torch.float64) for values in (mean, sd, sigma))
    return quantile(level, Moments(mean, sd.square()), sigma, df)


@pytest.mark.parametrize("df", [2.2, 4.0, 50.0])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.9])
@pytest.mark.half_slow
def test_the_distribution_function_there_is_the_level(df, level):
    mean, sd, sigma = np.array([0.3, -1.0, 2.0]), np.array([0.05, 0.8, 3.0]), np.array([1.0, 0.5, 0.7])
    x, z = found(level, mean, sd, sigma, df), np.linspace(-9, 9, 10_001)[:, None]
    below = student.cdf((x - mean - sd * z) / sigma, df) * norm.pdf(z)
    np.testing.assert_allclose(trapezoid(below, z, axis=0), level, rtol=0, atol=2e-4)


@pytest.mark.parametrize("df", [2.2, 4.0, 50.0])
def test_the_density_is_the_integral_over_eta(df, monkeypatch):
    monkeypatch.setattr("scvi_lfm.posterior.predictive_student_t.ENTRIES_PER_BLOCK", 3)
    y, mean = np.array([0.1, 2.5, -10.0, 4.0, 0.0]), np.array([0.3, -1.0, 2.0, 0.0, 0.2])
    sd, sigma = np.array([0.05, 0.8, 3.0, 20.0, 0.0]), np.array([1.0, 0.5, 0.7, 1.0, 0.4])

    def density(eta, k):
        return student.pdf(y[k], df, eta, sigma[k]) * norm.pdf(eta, mean[k], sd[k])

    ends = [(m - 9 * s, m + 9 * s) for m, s in zip(mean, sd, strict=True)]
    expected = [quad(density, *ends[k], (k,), points=[mean[k]], limit=500, epsabs=0)[0] for k in range(4)]
    expected.append(student.pdf(y[4], df, mean[4], sigma[4]))
    tensors = (torch.from_numpy(part) for part in (mean, sd**2))
    found = log_density(torch.from_numpy(y), Moments(*tensors), torch.from_numpy(sigma), df)
    np.testing.assert_allclose(found, np.log(expected), rtol=0, atol=1e-5)


def test_certain_eta_leaves_the_student_t():
    x = found(0.95, np.zeros(2), np.zeros(2), np.array([1.0, 2.0]), 3.0)
    np.testing.assert_allclose(x, student.ppf(0.95, 3) * np.array([1, 2]), rtol=1e-6)


def test_far_wider_eta_leaves_a_normal():
    ratio = np.array([0.99, 1.01]) * LARGEST_RATIO
    x = found(0.95, np.zeros(2), ratio, np.ones(2), 4.0)
    np.testing.assert_allclose(x, norm.ppf(0.95) * np.hypot(ratio, np.sqrt(2)), rtol=1e-3)


def test_the_density_of_far_wider_eta_is_a_normals():
    sd = torch.tensor([0.99, 1.01], dtype=torch.float64) * LARGEST_RATIO
    one = torch.ones(2, dtype=torch.float64)
    found = log_density(5 * one, Moments(0 * one, sd.square()), one, 4.0)
    np.testing.assert_allclose(found, norm.logpdf(5, 0, np.hypot(sd.numpy(), np.sqrt(2))), rtol=0, atol=2e-3)


def test_the_variance_is_scipys():
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    np.testing.assert_allclose(student_t.variance(sigma, 4.5), student.var(4.5) * sigma.numpy() ** 2)
