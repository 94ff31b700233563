"""Products by panels of columns: the same sums, whatever their width and however often a row is met."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data.batch import csr_tensor
from scvi_lfm.linalg import panels as room
from scvi_lfm.linalg.panels import COLUMNS, OFTEN, compressed_product, panels, times_panels


def compressed(n, m, density):
    matrix = sp.random_array((n, m), density=density, format="csr", dtype=np.float32, rng=0)
    return csr_tensor(*map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data)), matrix.shape), matrix


@pytest.mark.parametrize("width", [1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 3 * COLUMNS + 5])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.6])
def test_sums_are_those_of_the_whole_product(width, density):
    """Against float64; float32 rounds each of the terms of a sum."""
    matrix, there = compressed(70, 50, density)
    values = np.random.default_rng(1).normal(size=(50, width)).astype(np.float32)
    exact = there.astype(np.float64) @ values
    bound = 50 * 2**-24 * (there.astype(np.float64) @ np.abs(values)) + 1e-30
    for found in (
        times_panels(matrix, panels(torch.from_numpy(values))),
        compressed_product(matrix, torch.from_numpy(values)),
    ):
        assert found.shape == (70, width)
        assert found.dtype == torch.float32
        assert (np.abs(found.numpy() - exact) <= bound).all()


def test_panels_are_the_columns_in_order():
    values = torch.arange(200.0).reshape(2, 100)
    parts = panels(values)
    assert torch.equal(torch.cat(parts, dim=1), values)
    assert all(part.is_contiguous() and part.shape[1] <= COLUMNS for part in parts)


@pytest.mark.parametrize(("n", "parted"), [(OFTEN // 2, False), (4 * OFTEN, True)])
def test_rows_that_are_hardly_met_are_not_copied(monkeypatch, n, parted):
    made, whole = [], room.panels
    monkeypatch.setattr(room, "panels", lambda values: made.append(1) or whole(values))
    compressed_product(compressed(n, 20, 0.9)[0], torch.ones(20, 2 * COLUMNS))
    assert bool(made) == parted
