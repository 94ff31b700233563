from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scvi_lfm.model.likelihoods import normal


def test_expected_log_density_is_the_mean_over_eta():
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    y, mean, sd, sigma = 1.3, 0.4, 0.8, 0.6
    densities = norm.logpdf(y, mean + sd * nodes, sigma)
    expected_square = torch.tensor((y - mean) ** 2 + sd**2, dtype=torch.float64)
    found = normal.expected_log_density(expected_square, torch.tensor(sigma**-2, dtype=torch.float64))
    assert float(found) == pytest.approx(densities @ weights / weights.sum(), rel=1e-13)


def test_the_standard_tail_is_accurate_far_out():
    z = np.array([-40.0, -3.0, 0.0, 1.0, 5.0, 9.0, 20.0, 35.0])
    np.testing.assert_allclose(normal.standard_tail(torch.from_numpy(z)), norm.sf(z), rtol=1e-10)
