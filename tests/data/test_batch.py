"""A block of cells on the device: its values, and products with them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data import CellMatrix, Scaled
from scvi_lfm.data.batch import Batch, csr_tensor, transposed

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu, id="cuda")]
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


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 3), (3, 1), (4, 6)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_matrix_transposed_on_the_device(shape, dtype, device):
    matrix = sp.random(*shape, 0.4, format="csr", dtype=np.float32, rng=np.random.default_rng(1))
    parts = (
        torch.from_numpy(part).to(device)
        for part in (matrix.indptr.astype(dtype), matrix.indices.astype(dtype), matrix.data)
    )
    found, expected = transposed(csr_tensor(*parts, matrix.shape)), sp.csr_array(matrix.T)
    expected.sort_indices()
    assert found.shape == expected.shape
    for one, other in (("crow_indices", "indptr"), ("col_indices", "indices"), ("values", "data")):
        np.testing.assert_array_equal(getattr(found, one)().cpu(), getattr(expected, other))


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_block_in_half_precision_rounds_values_and_neither_sums_nor_squares(device):
    rng = np.random.default_rng(2)
    values = np.where(rng.random((40, 30)) < 0.4, rng.gamma(2.0, size=(40, 30)), 0.0).astype(np.float32)
    block = Batch(sp.csr_array(values), device, half=True)
    rounded = values.astype(np.float16).astype(np.float64)
    of_genes, of_cells = rng.normal(size=(30, 3)) * 1e40, rng.normal(size=(40, 2)) * 1e-50
    cells, genes = (torch.from_numpy(weights).to(device) for weights in (of_cells, of_genes))
    for found, exact in (
        (block.times_genes(Scaled(genes)), rounded @ of_genes),
        (block.times_cells(cells), rounded.T @ of_cells),
        (block.square_sums, (values.astype(np.float64) ** 2).sum(0)),
        (block.squares_times_cells(cells[:, 0]), (values.astype(np.float64) ** 2).T @ of_cells[:, 0]),
    ):
        assert found.dtype == torch.float64
        # 40 additions in float32
        np.testing.assert_allclose(found.cpu(), exact, rtol=0, atol=40 * 2**-23 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("least", "largest", "expected"),
    [(None, 1.0, False), (0.5, 1.0, False), (0.3, 1.0, True), (0.3, 65504.0, True), (0.3, 65520.0, False)],
)
def test_when_a_block_is_taken_in_half_precision(settings, least, largest, expected):
    """On a device that is not the host's, as `meta`: where it is dense enough and no value is too large."""
    settings.half_density = least
    values = sp.random(20, 10, 0.4, format="csr", dtype=np.float32, rng=np.random.default_rng(3))
    values.data[0] = -largest
    matrix = CellMatrix.of(sp.csr_array(values))
    assert matrix.batch(None, torch.device("meta")).half == expected
    assert not matrix.batch(None, CPU).half
    assert not matrix.batch(None, torch.device("meta"), torch.float64).half
