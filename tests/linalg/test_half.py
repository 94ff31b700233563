"""Products in half precision: as exact as the matrix, whatever the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.linalg.half import LARGEST, half_product


@pytest.mark.parametrize("spread", [0.0, 4.0, 12.0])
@pytest.mark.parametrize("seed", range(3))
def test_only_the_matrix_is_rounded(seed, spread):
    """Against float64. What a sum may lose: 2^-22 of each weight or 2^-35 of the largest, and float32's rounding."""
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.gamma(1.0, size=(30, 400))).half()
    weights = rng.normal(size=(400, 3)) * np.exp(-spread * rng.random((400, 1)))
    weights = torch.from_numpy((weights / np.abs(weights).max()).astype(np.float32))
    found, exact = half_product(matrix, weights), matrix.double() @ weights.double()
    sizes = matrix.double() @ weights.double().abs()
    bound = sizes * (2**-22 + 400 * 2**-24) + 2**-35 * matrix.double().sum(1, keepdim=True)
    assert found.dtype == torch.float32
    assert ((found.double() - exact).abs() <= bound).all()
    # as weights in half precision would not be
    coarse = (matrix.double() @ weights.half().double() - exact).abs()
    assert (coarse > 20 * (found.double() - exact).abs()).double().mean() > 0.9


def test_what_half_precision_holds():
    values = torch.tensor([2048.0, 65504.0, 65520.0])
    assert values.half().tolist() == [2048.0, LARGEST, float("inf")]
