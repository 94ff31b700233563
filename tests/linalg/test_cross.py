"""Products of low rank from some of their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.linalg.cross import cross_approximation


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    return normal


def product(left, right, some_left, some_right, rank):
    of_left, of_right = cross_approximation(some_left, some_right, rank)
    return (left @ of_left) @ (right @ of_right).T


def test_a_product_of_that_rank_is_exact(draw):
    """Rank 4 of 20 columns, told by 6 rows of the one and 7 of the other."""
    left, right = draw(50, 4) @ draw(4, 20), draw(60, 20)
    found = product(left, right, left[:6], right[:7], 4)
    torch.testing.assert_close(found, left @ right.T, rtol=1e-8, atol=1e-8)


def test_more_rank_than_there_is_does_no_harm(draw):
    left, right = draw(50, 2) @ draw(2, 20), draw(60, 20)
    torch.testing.assert_close(product(left, right, left[:9], right[:9], 7), left @ right.T, rtol=1e-6, atol=1e-6)


def test_from_all_rows_it_is_the_best_of_that_rank(draw):
    left, right = draw(30, 20), draw(40, 20)
    u, s, v = torch.linalg.svd(left @ right.T, full_matrices=False)
    best = u[:, :5] * s[:5] @ v[:5]
    torch.testing.assert_close(product(left, right, left, right, 5), best, rtol=1e-8, atol=1e-8)


def test_rows_of_zeros_give_zeros(draw):
    left, right = torch.zeros(5, 20, dtype=torch.float64), draw(40, 20)
    assert float(product(left, right, left, right, 3).abs().max()) == 0
