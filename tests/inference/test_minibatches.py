from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.minibatches import Minibatches


def numbered(n_cells, batch_size, seed=0, *, sparse=False):
    """Minibatches of cells whose only value is their position."""
    values = np.arange(1, n_cells + 1, dtype=np.float64)[:, None] * np.ones(2)
    matrix = CellMatrix.of(sp.csr_array(values) if sparse else values)
    return Minibatches(matrix, batch_size, torch.device("cpu"), torch.float64, np.random.default_rng(seed))


def cells(batch):
    return (batch.dense()[:, 0].numpy() - 1).astype(int).tolist()


def all_cells(blocks):
    return sum(blocks.each(cells), [])


@given(n=st.integers(1, 40), batch_size=st.integers(1, 45), sparse=st.booleans())
def test_every_cell_comes_once_an_epoch_in_parts_of_equal_size(n, batch_size, sparse):
    batches = numbered(n, batch_size, sparse=sparse)
    first = all_cells(batches.start)
    for number in (1, 2, 3):
        parts = [all_cells(blocks) for blocks in batches.epoch(number)]
        if number == 1 and batches.count > 1:
            # inference started from this one
            parts.append(first)
        assert sorted(sum(parts, [])) == list(range(n))
        sizes = [len(part) for part in parts]
        assert len(parts) == batches.count
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
    in_order = [cells(batch) for batch in batches.in_order()]
    assert sum(in_order, []) == list(range(n))
    assert all_cells(batches.everyone) == list(range(n))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 45), sparse=st.booleans())
def test_numbered_batches_know_where_their_cells_are(n, batch_size, sparse):
    seen = []
    for rows, batch in numbered(n, batch_size, sparse=sparse).numbered_epoch():
        assert cells(batch) == rows.tolist()
        seen += rows.tolist()
    assert sorted(seen) == list(range(n))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 45), every=st.integers(1, 5), data=st.data())
def test_all_at_once_one_cell_in_some_is_that_of_the_minibatches(n, batch_size, every, data):
    one, other = (numbered(n, batch_size) for _ in range(2))
    n_seen = data.draw(st.integers(0, one.count))
    for _ in range(2):  # random numbers are those of the minibatches too
        rows, blocks, some = one.rest(n_seen, every)
        minibatches = [each.numpy() for each, _ in other.numbered_epoch(n_seen)]
        assert sorted(np.concatenate([np.arange(0), *minibatches]).tolist()) == rows.tolist()
        asked = [each[::every] for each in minibatches]
        assert sorted(np.concatenate([np.arange(0), *asked]).tolist()) == rows[some].tolist()
        assert all_cells(blocks) == rows.tolist()
    if n_seen == 0:
        assert one.share_of_one_in(every) * n == pytest.approx(len(some))


def test_epochs_differ_and_a_seed_repeats_them():
    def epochs(seed):
        batches = numbered(50, 10, seed)
        return [[all_cells(blocks) for blocks in batches.epoch(number)] for number in (2, 3)]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1) != [first, second]


def test_a_single_block_is_made_once():
    batches = numbered(5, 5)
    assert batches.first() is next(batches.in_order())
    assert batches.start is next(batches.epoch(1)) is next(batches.epoch(2)) is batches.everyone
    first, again = (list(batches.start.each(lambda batch: batch)) for _ in range(2))
    assert first[0] is again[0]


@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_hold_the_values_both_ways(sparse):
    for batch in numbered(7, 3, sparse=sparse).in_order():
        by_gene = batch.by_gene.to_dense() if sparse else batch.by_gene
        assert torch.equal(batch.dense().T, by_gene)
