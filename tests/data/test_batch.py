"""A block of cells on the device: its values, and products with them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data import CellMatrix, Scaled

CPU = torch.device("cpu")
FORMS = [np.asarray, sp.csr_array]


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return np.where(rng.random((7, 5)) < 0.4, rng.normal(size=(7, 5)), 0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [None, slice(2, 5), np.array([0, 3, 6])])
def test_a_block_holds_its_cells(values, form, rows):
    matrix = CellMatrix.of(form(values))
    expected = values if rows is None else values[rows]
    block = matrix.batch(rows, CPU, torch.float64)
    assert matrix.shape == (7, 5)
    assert block.n_cells == len(expected)
    np.testing.assert_array_equal(block.dense(), expected)
    by_gene = block.by_gene if form is np.asarray else block.by_gene.to_dense()
    np.testing.assert_array_equal(by_gene, expected.T)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_float32_unless_asked(values, form):
    matrix = CellMatrix.of(form(values))
    assert matrix.batch(None, CPU).by_cell.dtype == torch.float32
    assert matrix.batch(None, CPU, torch.float64).by_gene.dtype == torch.float64


@pytest.mark.parametrize("form", FORMS)
def test_products_come_back_in_float64(values, form):
    block = CellMatrix.of(form(values)).batch(None, CPU)
    for product in (
        block.times_genes(Scaled(torch.ones(5, 2, dtype=torch.float64))),
        block.times_cells(torch.ones(7, 2, dtype=torch.float64)),
        block.square_sums,
    ):
        assert product.dtype == torch.float64


@pytest.mark.parametrize("scale", [1e-60, 1e60])
@pytest.mark.parametrize("form", FORMS)
def test_weights_beyond_float32_neither_vanish_nor_overflow(values, form, scale):
    block = CellMatrix.of(form(values)).batch(None, CPU)
    weights = np.linspace(-1, 1, 5)[:, None] * scale
    found = block.times_genes(Scaled(torch.from_numpy(weights)))
    np.testing.assert_allclose(found, values @ weights, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_at_all_is_no_product(values, form):
    block = CellMatrix.of(form(values)).batch(None, CPU)
    assert not block.times_genes(Scaled(torch.zeros(5, 2, dtype=torch.float64))).any()


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_block_of_values(form):
    block = CellMatrix.of(form(np.zeros((3, 4), dtype=np.float32))).batch(None, CPU)
    assert not block.times_genes(Scaled(torch.ones(4, 1, dtype=torch.float64))).any()
    assert not block.times_cells(torch.ones(3, 1, dtype=torch.float64)).any()
    assert not block.square_sums.any()


@pytest.mark.parametrize("form", FORMS)
def test_read_only_values_are_read(values, form):
    held = form(values.astype(np.float32))
    for part in (held.data, held.indices, held.indptr) if sp.issparse(held) else (held,):
        part.flags.writeable = False
    block = CellMatrix.of(held).batch(None, CPU)
    np.testing.assert_allclose(block.square_sums, (values**2).sum(0), rtol=1e-6)
    np.testing.assert_array_equal(block.dense(), values.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_indices_of_either_width(values, dtype):
    matrix = sp.csr_array(values)
    matrix.indices, matrix.indptr = matrix.indices.astype(dtype), matrix.indptr.astype(dtype)
    block = CellMatrix.of(matrix).batch(np.array([1, 4]), CPU, torch.float64)
    np.testing.assert_array_equal(block.dense(), values[[1, 4]])
