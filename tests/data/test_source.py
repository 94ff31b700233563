"""The contract of a source of values, held by each kind that there is and by one that gives rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

N, M = 23, 9


def drawn(seed=0):
    """Values of which some are zero, some whole; two cells and a gene are empty."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((N, M)) < 0.4, np.round(rng.normal(1, 3, (N, M)), rng.integers(2)), 0)
    values[[0, 11]] = values[:, 4] = 0
    return values.astype(np.float32)


def dense(block):
    return block if isinstance(block, np.ndarray) else block.toarray()


@pytest.mark.half_slow
@pytest.mark.usefixtures("parts")
class TestEverySource:
    @pytest.fixture
    def values(self):
        return drawn()

    @pytest.fixture
    def source(self, source_of, form, values):
        return source_of(form(values))

    def test_says_what_it_holds(self, source, form, values):
        held = form(values)
        assert source.shape == (N, M)
        assert source.dtype == held.dtype
        assert source.is_sparse == sp.issparse(held)
        assert source.n_stored == (held.nnz if sp.issparse(held) else values.size)

    @pytest.mark.parametrize(
        "which", [slice(None), slice(3, 8), slice(20, 99), slice(5, 5), np.array([17, 2, 5])], ids=str
    )
    def test_gives_rows(self, source, values, which):
        block = source.rows(which)
        assert sp.issparse(block) == source.is_sparse
        assert block.dtype == source.dtype
        np.testing.assert_array_equal(dense(block), values[which])

    def test_comes_in_parts_in_order(self, source, values):
        cells, blocks = zip(*source.parts(), strict=True)
        np.testing.assert_array_equal(np.concatenate([np.arange(N)[part] for part in cells]), np.arange(N))
        np.testing.assert_array_equal(np.vstack([dense(block) for block in blocks]), values)

    @pytest.mark.parametrize("genes", [np.array([7, 0, 3]), np.arange(M) % 2 == 0], ids=["positions", "mask"])
    def test_gives_genes(self, source, values, genes):
        part = source.at_genes(genes)
        block = part.rows(slice(4, 20))
        np.testing.assert_array_equal(dense(block), values[4:20, genes])
        assert isinstance(block, np.ndarray) or block.has_canonical_format
        np.testing.assert_array_equal(part.summary.cell_sums, values[:, genes].sum(1, dtype=float))

    def test_gives_entries_in_any_order(self, source, values):
        rng = np.random.default_rng(1)
        cell, gene = rng.integers(N, size=50), rng.integers(M, size=50)
        found = source.entries(cell, gene)
        assert found.dtype == source.dtype
        np.testing.assert_array_equal(found, values[cell, gene])
        assert source.entries(cell[:0], gene[:0]).shape == (0,)

    def test_does_without_entries(self, source, values):
        mask = sp.csr_array(np.random.default_rng(2).random((N, M)) < 0.3)
        rest = source.without(mask)
        np.testing.assert_array_equal(dense(rest.rows(slice(None))), np.where(mask.toarray(), 0, values))
        np.testing.assert_array_equal(dense(source.rows(slice(None))), values)
        if source.is_sparse:
            assert rest.n_stored == ((values != 0) & ~mask.toarray()).sum()

    def test_knows_what_it_stores(self, source_of):
        stored = sp.csr_array(drawn())
        stored.data[3] = 0  # a stored zero
        pattern = source_of(stored).pattern()
        assert (pattern.data == 1).all()
        np.testing.assert_array_equal(pattern.indices, stored.indices)
        np.testing.assert_array_equal(pattern.indptr, stored.indptr)

    def test_sums_up_what_it_holds(self, source, values):
        found, present = source.summary, values[values != 0]
        assert found is source.summary
        assert found.shape == (N, M)
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        stored = present if source.is_sparse else values
        assert (found.stored_minimum, found.stored_maximum) == (stored.min(), stored.max())
        assert (found.n_stored, found.n_present) == (stored.size, present.size)
        assert found.n_whole == (present == np.rint(present)).sum()
        np.testing.assert_allclose(found.cell_sums, values.sum(1, dtype=float), rtol=1e-12)
        assert found.total == pytest.approx(values.sum(dtype=float), rel=1e-12)
        np.testing.assert_array_equal(found.empty_cells, ~values.any(1))
        np.testing.assert_array_equal(found.empty_genes, ~values.any(0))
        assert not found.is_constant

    def test_a_stored_zero_makes_nothing_less_empty(self, source_of):
        stored = sp.csr_array(np.array([[1.0, 1, 0], [0, 2, 2]]))
        stored.data[[0, 3]] = 0
        found = source_of(stored).summary
        assert (found.n_stored, found.n_present, found.n_whole, found.stored_minimum) == (4, 2, 2, 0)
        np.testing.assert_array_equal(found.empty_cells, [False, False])
        np.testing.assert_array_equal(found.empty_genes, [True, False, True])

    @pytest.mark.parametrize(
        ("values", "constant"),
        [
            (np.zeros((3, 4)), True),
            (np.full((3, 4), 2.0), True),
            (np.eye(3), False),
            (np.array([[2.0, 2], [0, 2]]), False),
            (np.zeros((3, 0)), True),
        ],
        ids=["zeros", "twos", "ones and zeros", "twos and a zero", "no gene"],
    )
    def test_knows_whether_anything_varies(self, source_of, form, values, constant):
        assert source_of(form(values)).summary.is_constant == constant

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_shows_in_the_extremes(self, source_of, form, values, bad):
        values[7, 3] = bad
        found = source_of(form(values)).summary
        assert not np.isfinite([found.stored_minimum, found.stored_maximum]).all()
        assert not np.isfinite([found.minimum, found.maximum]).all()

    @pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64])
    def test_integers_are_whole_and_exact(self, source_of, form, dtype):
        if form is not np.asarray and form is not sp.csr_array:
            return
        values = np.zeros((4, 3), dtype)
        values[1, 2], values[3, 0] = 1, np.iinfo(dtype).max if dtype is not bool else 1
        found = source_of(form(values)).summary
        assert found.n_whole == found.n_present == 2
        assert found.maximum == values.max()
        assert found.minimum == 0
