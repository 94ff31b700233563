from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import kstest

from scvi_lfm.data import MemorySource, holding_out
from scvi_lfm.data.holding_out import choose, draw_entries, thin_molecules


def test_a_matrix_beyond_memory_if_it_were_dense():
    n, m, k = 3_000_000, 2_000_000, 1000
    rng = np.random.default_rng(0)
    places = (rng.integers(n, size=k), rng.integers(m, size=k))
    values = sp.csr_matrix((np.ones(k, dtype=np.float32), places), shape=(n, m))
    mask, _ = draw_entries(MemorySource(sp.csr_array(values)), 0.5, rng, stored=False)
    zeros = mask.tocoo()
    is_zero = np.asarray(values[zeros.row, zeros.col]).ravel() == 0
    assert 0 < is_zero.sum() == (~is_zero).sum()
    # drawn zeros are uniform over rows and columns
    assert kstest(zeros.row[is_zero] / n, "uniform").pvalue > 1e-4
    assert kstest(zeros.col[is_zero] / m, "uniform").pvalue > 1e-4


@pytest.fixture
def in_parts(monkeypatch):
    """A source of which three cells are a part, and which is never read whole."""

    def refuse(_source):
        raise AssertionError

    def make(values):
        monkeypatch.setattr("scvi_lfm.data.source.VALUES_PER_PART", 3 * values.nnz / values.shape[0])
        monkeypatch.setattr(MemorySource, "whole", refuse)
        return MemorySource(values)

    return make


def counts():
    x = np.random.default_rng(3).poisson(0.4, (40, 30))
    x[5] = 0
    x[6, 1:] = 0
    x[6, 0] = 2
    return sp.csr_array(x.astype(np.float32))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.95])
def test_parts_of_the_cells_give_the_mask_of_all(in_parts, stored, fraction):
    values = counts()
    values.data[::7] = 0
    whole = draw_entries(MemorySource(values), fraction, np.random.default_rng(1), stored=stored)
    by_parts = draw_entries(in_parts(values), fraction, np.random.default_rng(1), stored=stored)
    assert whole[0].nnz > 0
    assert (whole[0] != by_parts[0]).nnz == 0
    assert whole[1] == by_parts[1]
    assert by_parts[0].has_canonical_format


def test_entries_are_those_that_a_draw_from_all_at_once_gives():
    """The entries and the zeros, numbered row by row."""
    values = counts()
    x, rng = values.toarray().ravel(), np.random.default_rng(9)
    present, zeros = np.flatnonzero(x), np.flatnonzero(x == 0)
    drawn = np.sort(rng.choice(len(present), round(0.1 * len(present)), replace=False, shuffle=False))
    row = present // 30
    assert (np.bincount(row[drawn], minlength=40) < np.bincount(row, minlength=40))[np.unique(row)].all()
    _ = rng.integers(0, np.empty(0, dtype=int))
    some = rng.choice(len(zeros), min(len(drawn), round(0.1 * len(zeros))), replace=False, shuffle=False)
    mask, kept = draw_entries(MemorySource(values), 0.1, np.random.default_rng(9), stored=False)
    assert kept == 0
    np.testing.assert_array_equal(
        np.flatnonzero(mask.toarray().ravel()), np.sort(np.concatenate([present[drawn], zeros[some]]))
    )


@pytest.mark.parametrize("fraction", [0.3, 0.98])
def test_molecules_of_parts_are_those_of_all(in_parts, fraction):
    values = counts()
    whole = thin_molecules(MemorySource(values), fraction, np.random.default_rng(1))
    by_parts = thin_molecules(in_parts(values), fraction, np.random.default_rng(1))
    for one, other in zip(whole[:2], by_parts[:2], strict=True):
        assert (one != other).nnz == 0
        assert other.has_canonical_format
        assert other.data.all()
    assert whole[2] == by_parts[2]
    assert (whole[2] > 0) == (fraction > 0.9)
    assert abs(by_parts[0] + by_parts[1] - values).sum() == 0
    assert (by_parts[0].sum(1) > 0).sum() == (values.sum(1) > 0).sum()


@pytest.mark.parametrize("count", [0, 1, 40, 300, 599, 600])
def test_numbers_beyond_memory_are_drawn_once_and_as_likely(monkeypatch, count):
    n, repeats = 600, 400
    monkeypatch.setattr(holding_out, "MOST_IN_MEMORY", 10)
    rng, times = np.random.default_rng(0), np.zeros(n)
    for _ in range(repeats):
        found = choose(n, count, rng)
        assert len(found) == count
        assert (np.diff(found) > 0).all()
        times[found] += 1
    # of each number, how often it was drawn is binomial; the chance that one of 600 is off by 5 is below 1e-3
    share = count / n
    assert np.abs(times - repeats * share).max() <= 5 * max(np.sqrt(repeats * share * (1 - share)), 1)
