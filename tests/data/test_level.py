"""A level that all values share: when there is one, what blocks are less of, and when it has cost digits."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data import CellMatrix, at_level, common_level, read_held_out, read_matrix, restrict

CPU = torch.device("cpu")
LEVELS = [1e3, 1e6, 1e9, -1e6]
N, M = 60, 40


def values(level=0.0, spread=1.0, seed=0):
    return level + spread * np.random.default_rng(seed).standard_normal((N, M))


def stored(dense, share=0.5, seed=1):
    """Some of the entries of a matrix, as a sparse matrix that says nothing of the others."""
    row, column = np.nonzero(np.random.default_rng(seed).random(dense.shape) < share)
    return sp.csr_array((dense[row, column], (row, column)), shape=dense.shape)


def only_stored(dense):
    return restrict(CellMatrix.of(stored(dense)), "stored", None)


def with_held_out(dense, share=0.3):
    mask = sp.csr_array(np.random.default_rng(2).random(dense.shape) < share)
    return restrict(CellMatrix.of(dense), "all", mask)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", [CellMatrix.of, only_stored, with_held_out, lambda x: CellMatrix.of(sp.csr_array(x))])
def test_a_level_is_found_to_a_spread(level, form):
    found = common_level(form(values(level)))
    assert abs(found - level) <= 1
    assert found == round(found * 64) / 64  # so round that it subtracts without an error


@pytest.mark.parametrize(
    ("mean", "spread", "has_one"),
    [
        (11.0, 1.0, True),
        (9.0, 1.0, False),
        (0.11, 0.01, True),
        (0.09, 0.01, False),
        (110.0, 50.0, True),
        (90.0, 50.0, False),
        (-1.1e5, 1e5, True),
        (-0.9e5, 1e5, False),
        (1e6, 0.0, False),
        (0.0, 100.0, False),
    ],
)
def test_the_rule(mean, spread, has_one):
    """Beyond ten spreads, or beyond one and the spread of mu's prior."""
    dense, sparse = values(), stored(values())
    for data in (dense, sparse.data):
        data[:] = mean + spread * (data - data.mean()) / data.std()
    for matrix in (CellMatrix.of(dense), restrict(CellMatrix.of(sparse), "stored", None)):
        assert (common_level(matrix) != 0) == has_one


@pytest.mark.parametrize("many", [1, M, M * N // 3])
def test_a_few_large_values_make_no_level(many):
    x = values()
    x.ravel()[:many] += 1e6  # the others would lose their digits
    assert common_level(CellMatrix.of(x)) == 0


def test_common_data_have_none(pbmc_lognorm):
    ratings = np.random.default_rng(0).integers(1, 6, (N, M)).astype(np.float32)
    counts = pbmc_lognorm.X.expm1()  # of mean above 100 in some genes, and mostly zero
    for x in (pbmc_lognorm.X, counts, 1e4 * counts, ratings):
        assert common_level(CellMatrix.of(sp.csr_array(x))) == 0
    assert common_level(only_stored(ratings)) == 0
    assert common_level(CellMatrix.of((ratings - ratings.mean(0)) / ratings.std(0))) == 0
    assert common_level(CellMatrix.of((1e4 * counts[:200]).toarray())) == 0  # dense or sparse, it is the same


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [None, slice(3, 20), np.array([0, 7, 30])])
def test_blocks_are_less_the_level(level, dtype, rows):
    x = values(level)
    taken = slice(None) if rows is None else rows
    block = at_level(CellMatrix.of(x), level, "X").batch(rows, CPU, dtype)
    np.testing.assert_array_equal(block.dense(), torch.as_tensor(x[taken] - level).to(dtype))
    of_stored = stored(x)
    block = at_level(restrict(CellMatrix.of(of_stored), "stored", None), level, "X").batch(rows, CPU, dtype)
    assert sp.issparse(block.values)
    expected = np.where(of_stored.toarray() != 0, x - level, 0)[taken]
    np.testing.assert_array_equal(block.dense(), torch.as_tensor(expected).to(dtype))


def test_integers_are_exact_beyond_what_float32_holds():
    x = np.random.default_rng(0).integers(-5, 6, (N, M)) + 2**40
    block = at_level(CellMatrix.of(x), common_level(CellMatrix.of(x)), "X").batch(None, CPU)
    np.testing.assert_array_equal(block.dense(), (x - 2**40).astype(np.float32))


def test_zeros_that_are_not_stored_are_data_at_the_same_distance():
    x = values(1e6)
    x[3, 5] = x[40, 2] = 0
    sparse = sp.csr_array(x)
    assert sparse.nnz == x.size - 2
    dense, matrix = (CellMatrix.of(form) for form in (x, sparse))
    # two such values among so few are a spread of their own: what is asked here is what a block holds
    for rows in (None, slice(0, 10)):
        blocks = [at_level(one, 1e6, "X").batch(rows, CPU) for one in (dense, matrix)]
        np.testing.assert_array_equal(blocks[0].dense(), blocks[1].dense())
    assert blocks[1].dense()[3, 5] == -1e6


@pytest.mark.parametrize("observed", ["all", "stored"])
def test_held_out_values_are_less_the_level_and_leave_zeros(observed):
    x = values(1e6)
    adata = ad.AnnData(sp.csr_matrix(stored(x)) if observed == "stored" else x)
    adata.layers["test"] = sp.csr_matrix(np.random.default_rng(2).random(x.shape) < 0.2)
    matrix = restrict(read_matrix(adata), observed, read_held_out(adata, "test"))
    matrix = at_level(matrix, common_level(matrix), "X")
    held = matrix.held_out
    np.testing.assert_array_equal(held.y, x[held.cell, held.gene] - matrix.level)
    block = matrix.batch(None, CPU)
    assert not block.dense()[held.cell, held.gene].any()
    data = block.is_observed().numpy()
    np.testing.assert_array_equal(block.dense()[data], (x - matrix.level)[data].astype(np.float32))
    np.testing.assert_allclose(matrix.row_sums(), np.where(data, x - matrix.level, 0).sum(1), atol=1e-6)


def test_nothing_is_copied_and_nothing_changed_without_a_level():
    x = values()
    matrix = CellMatrix.of(x)
    assert at_level(matrix, common_level(matrix), "X") is matrix
    x = values(1e6)
    lowered = at_level(CellMatrix.of(x), 1e6, "X")
    assert lowered.stored() is x
    for part in (lowered.at_cells(np.arange(5)), lowered.at_genes(np.arange(5))):
        assert part.level == 1e6


@pytest.mark.parametrize(
    ("dtype", "level", "spacing"),
    [("float32", 1e6, "0.0625"), ("float32", -1e6, "0.0625"), ("float16", 1e3, "0.5"), ("float64", 1e14, "0.0156")],
)
def test_lost_digits_are_refused(dtype, level, spacing):
    matrix = CellMatrix.of(values(level).astype(dtype))
    words = rf"X holds values around {level:.10g}.* deviation of 1.*, and {dtype} .* {spacing}: .*float64.*subtract"
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        at_level(matrix, common_level(matrix), "X")


@pytest.mark.parametrize(
    "x",
    [
        values(1e3).astype(np.float32),
        values(1e9),
        np.rint(values(1e6, spread=10)).astype(np.float32),  # whole numbers that float32 holds
        np.rint(values(1e9, spread=10)).astype(np.int64),
    ],
)
def test_digits_that_are_there_are_taken(x):
    matrix = CellMatrix.of(x)
    lowered = at_level(matrix, common_level(matrix), "X")
    assert abs(lowered.batch(None, CPU).dense().mean()) < 1


@pytest.mark.parametrize("value", [5.0, 0.1, 1e6 + 0.1])
def test_constant_values_have_no_level_even_where_their_mean_is_rounded(value):
    assert common_level(with_held_out(np.full((N, M), value))) == 0


def test_values_on_another_scale_are_named():
    with pytest.warns(UserWarning, match=r"X lie around -0\.0.*around 1000000;.*same scale"):
        at_level(CellMatrix.of(values() - 0.05), 1e6, "X")
