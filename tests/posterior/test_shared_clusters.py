"""Slopes within clusters: right where the composition of cells differs between batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.model import Gaussian
from scvi_lfm.posterior.shared_clusters import slopes_within_clusters


@pytest.mark.parametrize("seed", range(3))
def test_another_composition_is_not_taken_for_a_shift(seed):
    rng = np.random.default_rng(seed)
    n = 1500
    second = rng.random(n) < 0.5
    kind = np.where(rng.random(n) < 0.75, second, ~second).astype(int)
    centres = np.array([[-3.0, 0, 1], [3, 1, -1]])
    slopes = np.array([[0.4], [0.5], [-1.0], [0.2]])
    z = (second - second.mean())[:, None]
    rows = np.column_stack([0.2 * kind, centres[kind]]) + 0.5 * rng.standard_normal((n, 4)) + z @ slopes.T
    rows, known = torch.from_numpy(rows), torch.from_numpy(z)
    even = torch.linalg.solve(known.T @ known, known.T @ rows[:, 1:]).T
    assert (even[0] - slopes[1, 0]).abs() > 2  # regression takes the types for the batch
    found = slopes_within_clusters(rows, known, [torch.zeros(3, 1).double(), even])
    np.testing.assert_allclose(found, slopes, atol=0.15)


def test_a_prior_given_what_is_known_is_the_conditional_one():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    mean, cov = rng.standard_normal(5), root @ root.T
    given = Gaussian(torch.from_numpy(mean), torch.from_numpy(cov)).given_known(2)
    precision = np.linalg.inv(cov)
    free, known = [0, 3, 4], [1, 2]
    z = rng.standard_normal((1, 2))
    np.testing.assert_allclose(given.cov, np.linalg.inv(precision[np.ix_(free, free)]), rtol=1e-9)
    pull = precision[np.ix_(free, known)] @ (z[0] - mean[known])
    expected = mean[free] - np.linalg.solve(precision[np.ix_(free, free)], pull)
    np.testing.assert_allclose(given.means(torch.from_numpy(z))[0], expected, rtol=1e-9)
