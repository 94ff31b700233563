"""Cells in blocks: all of them once, in the order and of the size asked for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from scvi_lfm._workers import even_slices
from scvi_lfm.data import CellMatrix
from scvi_lfm.data import blocks as module
from scvi_lfm.data.blocks import Blocks, blocks_of, random_parts, slices, some_cells

CPU = torch.device("cpu")


@given(n=st.integers(1, 50), m=st.integers(0, 20), size=st.none() | st.integers(1, 60), limit=st.integers(1, 2000))
def test_slices_hold_every_cell_once_and_no_more_than_the_rule_says(n, m, size, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", limit)
        for dtype, width in ((torch.float32, 4), (torch.float64, 8)):
            parts = list(slices(n, m, dtype, size=size))
            assert [cell for part in parts for cell in range(part.start, part.stop)] == list(range(n))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) <= (size or max(1, limit // (width * max(m, 1))))
            assert len(set(lengths[:-1])) <= 1


@given(n=st.integers(1, 50), count=st.integers(1, 50))
def test_even_and_random_parts_differ_in_size_by_one_at_the_most(n, count):
    count = min(n, count)
    even = [np.arange(n)[part] for part in even_slices(n, count)]
    drawn = random_parts(n, count, np.random.default_rng(0))
    np.testing.assert_array_equal(np.concatenate(even), np.arange(n))
    np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), np.arange(n))
    for parts in (even, drawn):
        assert len(parts) == count
        assert np.ptp([len(part) for part in parts]) <= 1
        assert all((np.diff(part) > 0).all() for part in parts)


@given(n=st.integers(20, 400), count=st.integers(1, 6), seed=st.integers(0, 5), first_short=st.booleans())
def test_many_cells_are_drawn_in_runs(n, count, seed, first_short):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_ONE_BY_ONE", 19)
        patch.setattr(module, "RUNS_PER_PART", 4)
        parts = random_parts(n, count, np.random.default_rng(seed), first_short=first_short)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert len(parts) == count
    assert np.ptp([len(part) for part in parts]) <= 1
    short = first_short and count > 1
    # the holes that the first part leaves
    holes = len(parts[0]) if short else 0
    for part in parts[short:]:
        # runs of a quarter of a part: four whole ones, or more where some are cut
        assert (np.diff(part) > 1).sum() <= 6 + holes


def test_the_part_that_stands_for_all_is_of_short_runs(monkeypatch):
    monkeypatch.setattr(module, "MOST_ONE_BY_ONE", 10)
    rng, n, count, trials = np.random.default_rng(0), 402, 3, 3000
    inside = np.zeros(n)
    for _ in range(trials):
        first = random_parts(n, count, rng, first_short=True)[0]
        ends = np.flatnonzero(np.diff(first) > 1)
        # some touch; the last is cut, one is short, and one goes around the end
        assert 5 < len(ends) + 1 <= 134 // 4 + 4
        inside[first] += 1
    # of 402 binomials one in 4,000 tests would be further out than five standard deviations
    assert np.abs(inside / trials - 1 / count).max() < 5 * np.sqrt(1 / count * (1 - 1 / count) / trials)


def test_cells_that_stand_for_all_come_in_short_runs_where_there_are_many(monkeypatch):
    drawn = np.random.default_rng(3).permutation(402)[:134]
    np.testing.assert_array_equal(some_cells(402, 134, np.random.default_rng(3)), np.sort(drawn))
    monkeypatch.setattr(module, "MOST_ONE_BY_ONE", 401)
    found = some_cells(402, 134, np.random.default_rng(3))
    assert len(np.unique(found)) == 134
    assert np.count_nonzero(np.diff(found) > 1) < 134 // 4 + 4
    np.testing.assert_array_equal(some_cells(402, 500, np.random.default_rng(3)), np.arange(402))


def test_runs_hold_each_cell_and_each_pair_of_neighbours_as_often(monkeypatch):
    """Every cell is in a part with the same probability, wherever in the file it lies; so is every run's beginning."""
    monkeypatch.setattr(module, "MOST_ONE_BY_ONE", 10)
    monkeypatch.setattr(module, "RUNS_PER_PART", 2)
    rng, n, count, trials = np.random.default_rng(0), 60, 6, 4000
    inside, together = np.zeros(n), np.zeros(n - 1)
    for _ in range(trials):
        part = np.isin(np.arange(n), random_parts(n, count, rng)[2])
        inside += part
        together += part[:-1] & part[1:]
    # five standard deviations of a binomial: with 119 of them, one in 10,000 tests would go beyond
    assert np.abs(inside / trials - 1 / count).max() < 5 * np.sqrt(1 / count * (1 - 1 / count) / trials)
    middle = together[5:-5] / trials
    p = middle.mean()
    assert np.abs(middle - p).max() < 5 * np.sqrt(p * (1 - p) / trials)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_blocks_hold_the_values_of_their_cells(form, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * 5 * 4)
    values = np.random.default_rng(0).poisson(1.0, (10, 5)).astype(np.float32)
    covariates = np.arange(10.0)[:, None]
    matrix = CellMatrix.of(form(values), covariates=covariates)
    in_order = Blocks.of_size(matrix, CPU)
    found = list(zip(in_order.places, in_order.each(lambda batch: batch), strict=True))
    assert [cells.stop - cells.start for cells, _ in found] == [2, 3, 2, 3]  # nearly equal
    found += blocks_of(matrix, slices(10, 5, size=4), CPU, torch.float64)
    found += blocks_of(matrix, [np.array([7, 2]), np.array([0])], CPU)
    for cells, batch in found:
        np.testing.assert_array_equal(batch.dense(), values[cells])
        np.testing.assert_array_equal(batch.known, covariates[cells])
    assert [batch.by_cell.dtype for _, batch in found[4:7]] == [torch.float64] * 3


def test_a_block_is_read_when_it_is_asked_for(monkeypatch):
    matrix, read = CellMatrix.of(np.ones((6, 2))), []
    monkeypatch.setattr(CellMatrix, "batch", lambda _, rows, *__, **___: read.append(rows))
    iterator = Blocks.of_size(matrix, CPU, 2).each(lambda batch: batch)
    assert read == []
    next(iterator)
    assert read == [slice(0, 2)]
