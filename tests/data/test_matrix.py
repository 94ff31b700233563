"""A matrix is a source with what is data of it: what it gives does not depend on where the values lie."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data import CellMatrix, draw_sample, restrict

CPU = torch.device("cpu")
N, M = 30, 8


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return np.where(rng.random((N, M)) < 0.5, rng.integers(1, 9, (N, M)), 0).astype(np.float32)


@pytest.fixture
def mask():
    return sp.csr_array(np.random.default_rng(1).random((N, M)) < 0.2)


@pytest.fixture(params=["all", "stored", "all less held out", "stored less held out"])
def matrix(request, source_of, values, mask):
    """A matrix and which of its entries are data."""
    observed, held = request.param.split()[0], "less" in request.param
    whole = CellMatrix(source_of(sp.csr_array(values)), covariates=np.arange(float(N))[:, None])
    return restrict(whole, observed, mask if held else None), (observed == "all" or values != 0) & ~(
        held & mask.toarray()
    )


@pytest.mark.usefixtures("parts")
@pytest.mark.half_slow
def test_what_is_data_and_what_is_held_out(matrix, values, mask):
    matrix, data = matrix
    data = np.broadcast_to(data, values.shape)
    assert matrix.n_observed == data.sum()
    batch = matrix.batch(None, CPU)
    np.testing.assert_array_equal(batch.dense(), np.where(data, values, 0))
    is_observed = batch.is_observed()
    assert (is_observed is None) == (data.all())
    if is_observed is not None:
        np.testing.assert_array_equal(is_observed, data)
    if matrix.held_out is not None:
        held = mask.toarray() & ((values != 0) | (not matrix.only_stored))
        np.testing.assert_array_equal(np.column_stack([matrix.held_out.cell, matrix.held_out.gene]), np.argwhere(held))
        np.testing.assert_array_equal(matrix.held_out.y, values[held])


@pytest.mark.half_slow
def test_less_a_constant(matrix, values):
    matrix, data = matrix
    less = matrix.less(2.5)
    expected = np.where(data, values - 2.5, 0)
    np.testing.assert_array_equal(less.batch(None, CPU).dense(), expected)
    np.testing.assert_allclose(less.row_sums(), expected.sum(1), rtol=1e-6)
    np.testing.assert_array_equal(less.less(-2.5).batch(None, CPU).dense(), np.where(data, values, 0))
    if matrix.held_out is not None:
        np.testing.assert_array_equal(less.held_out.y, matrix.held_out.y - 2.5)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.half_slow
def test_mapped_knows_cells_and_genes(source_of, form, dtype, values):
    held = form(values.astype(dtype))
    matrix = CellMatrix(source_of(held), covariates=np.ones((N, 1)))
    found = matrix.mapped(lambda y, cell, gene: y * (1 + cell) + 100 * gene * (y > 0))
    expected = values * (1 + np.arange(N)[:, None]) + 100 * np.arange(M) * (values > 0)
    np.testing.assert_array_equal(found.batch(None, CPU).dense(), expected)
    assert found.source.dtype == np.float32
    assert found.source.is_sparse == matrix.source.is_sparse
    np.testing.assert_array_equal(found.covariates, matrix.covariates)
    np.testing.assert_array_equal(matrix.batch(None, CPU).dense(), values)


def test_mapped_values_are_less_the_level(source_of, values):
    matrix = restrict(CellMatrix(source_of(sp.csr_array(values))), "stored", None).less(3)
    np.testing.assert_array_equal(matrix.mapped(lambda y, *_: y).stored().data, values[values != 0] - 3)


@pytest.mark.half_slow
def test_a_part_of_the_cells_is_in_memory(matrix, values):
    matrix, data = matrix
    some = np.array([3, 4, 20])
    part = matrix.at_cells(some)
    np.testing.assert_array_equal(part.batch(None, CPU).dense(), np.where(data, values, 0)[some])
    assert part.held_out is None
    np.testing.assert_array_equal(part.covariates[:, 0], some)


@pytest.mark.parametrize("size", [40, 10_000])
@pytest.mark.half_slow
def test_a_sample_stands_for_all_entries_that_are_data(matrix, values, size):
    matrix, data = matrix
    data = np.broadcast_to(data, values.shape)
    sample = draw_sample(matrix, size, np.random.default_rng(3))
    assert len(sample.y) <= size
    assert data[sample.cell, sample.gene].all()
    np.testing.assert_array_equal(sample.y, values[sample.cell, sample.gene])
    assert sample.weight.sum() == pytest.approx(1)
    share = (data & (values != 0)).sum() / data.sum()
    assert sample.weight[sample.y != 0].sum() == pytest.approx(share)
