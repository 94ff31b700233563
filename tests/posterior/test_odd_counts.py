"""Odd counts: which are found, what is taken out, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from scvi_lfm.data import CellMatrix
from scvi_lfm.data.entries import Observed
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.anomalies.odd_counts import without_odd_counts
from scvi_lfm.posterior.anomalies.other_cells import OwnAndOther
from scvi_lfm.posterior.anomalies.scan import CountScan
from scvi_lfm.posterior.dense_blocks import DenseBlocks
from scvi_lfm.posterior.leave_one_out import LeaveOneOut


@pytest.fixture
def blocks(monkeypatch):
    def make(y, size, observed=None):
        pattern = None if observed is None else Observed(sp.csr_array(observed.numpy()), only=True)
        monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", size * y.shape[1])
        return DenseBlocks(CellMatrix.of(y.numpy(), pattern), y.device)

    return make


def scan_of(found, direction, blocks):
    return CountScan(OwnAndOther(found.posterior, blocks), direction, found.gross, 0.1)


@pytest.fixture(scope="module")
def two_groups():
    """Two groups of cells: gene 0 marks the second, gene 1 varies a little. Both have 40 in a cell of the first."""
    rng = np.random.default_rng(0)
    rates = np.full((200, 60), 0.5)
    rates[:100, 2:20], rates[100:, 2:20] = 2.0, 0.2
    rates[100:, 0] = 20.0
    rates[:100, 0], rates[:100, 1], rates[100:, 1] = 0.05, 0.02, 0.06
    counts = rng.poisson(rates).astype(np.float32)
    counts[3, 0], counts[7, 1] = 40, 40
    adata = lfm.datasets.simulate(200, 60, 1, likelihood="poisson")
    adata.X = sp.csr_matrix(counts)
    lfm.tl.fit(adata, 1, likelihood="poisson", size_factors=np.ones(200), progress=False)
    return read_fit(adata, "lfm").posterior, torch.from_numpy(counts)


def test_a_marker_of_other_cells_is_told_from_what_no_cell_has(two_groups, blocks):
    q, y = two_groups
    found = without_odd_counts(q, blocks(y, 200))
    scores = scan_of(found, "both", blocks(y, 200)).score(y, found.posterior, found.taken)
    marker, nowhere = scores.log_ratio[3, 0], scores.log_ratio[7, 1]
    assert marker > 5
    assert nowhere < marker / 2
    # both are improbable all the same
    assert (-scores.distance[3, 0]).exp() < 1e-4
    assert (-scores.distance[7, 1]).exp() < 1e-4


def test_both_are_taken_out_and_next_to_nothing_else(two_groups, blocks):
    q, y = two_groups
    found = without_odd_counts(q, blocks(y, 200))
    share = torch.zeros_like(y)
    share[found.taken.cell, found.taken.gene] = found.taken.share
    assert share[3, 0] > 0.99
    assert share[7, 1] > 0.99
    # measured: 5.4, what is not theirs spread over 61 of 12,000 counts
    assert share.sum() < 8
    before, after = (LeaveOneOut(part).fitted(part).seen_by(q.likelihood) for part in (q, found.posterior))
    # measured over seeds: 0.08 to 0.21, and 0.39 to 0.44 of all that its group expects of a gene that was pulled up
    assert after[3, 0] < 0.4 * before[3, 0]
    assert after[:100, 1].mean() < 0.6 * before[:100, 1].mean()


def test_blocks_of_cells_change_nothing(two_groups, blocks):
    q, y = two_groups
    whole, parts = (without_odd_counts(q, blocks(y, size)) for size in (200, 37))
    assert torch.equal(whole.taken.cell, parts.taken.cell)
    torch.testing.assert_close(whole.taken.share, parts.taken.share, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(whole.posterior.gene_mean, parts.posterior.gene_mean, rtol=1e-4, atol=1e-5)
    assert whole.gross.share == pytest.approx(parts.gross.share, rel=1e-3)
    assert whole.share == parts.share


def test_what_is_no_data_says_nothing(blocks):
    adata = lfm.datasets.simulate(200, 60, 2, likelihood="negative_binomial", mu=0.3)
    lfm.tl.fit(adata, 2, likelihood="negative_binomial", progress=False)
    q, y = read_fit(adata, "lfm").posterior, torch.from_numpy(adata.X.toarray())
    # zeros where most is expected: as data they would look like other cells
    unseen = y >= y.flatten().sort(descending=True).values[20]
    kept = y.masked_fill(unseen, 0)
    shares = [without_odd_counts(q, blocks(kept, 200, mask)).share for mask in (~unseen, None)]
    assert shares[0] < 0.8 * shares[1]


def test_odd_counts_of_a_gene_do_not_hide_the_next_one(blocks):
    """One gene is found in every tenth cell of the wrong group: these look less odd the more of them there are."""
    rng = np.random.default_rng(1)
    rates = np.full((400, 80), 1.0)
    rates[:200, :20], rates[200:, 20:40] = 8.0, 8.0
    rates[200:, :20], rates[:200, 20:40] = 0.05, 0.05
    counts = rng.poisson(rates).astype(np.float32)
    wrong = rng.choice(200, 20, replace=False)
    counts[wrong, 25] = 6
    adata = lfm.datasets.simulate(400, 80, 1, likelihood="negative_binomial")
    adata.X = sp.csr_matrix(counts)
    lfm.tl.fit(adata, 1, likelihood="negative_binomial", size_factors=np.ones(400), progress=False)
    q, y = read_fit(adata, "lfm").posterior, torch.from_numpy(counts)
    found = without_odd_counts(q, blocks(y, 400))
    clean = np.setdiff1d(np.arange(200), wrong)
    pulled = LeaveOneOut(q).fitted(q).seen_by(q.likelihood)[clean, 25].mean()
    scores = scan_of(found, "up", blocks(y, 400)).score(y, found.posterior, found.taken)
    # the true rate is 0.05
    assert scores.expected[clean, 25].mean() < 0.5 * pulled
    assert (scores.log_ratio[wrong, 25] > 5).all()


def test_presence_has_no_room_for_them():
    adata = lfm.datasets.simulate(60, 30, 1, likelihood="bernoulli", mu=-0.5)
    lfm.tl.fit(adata, 1, likelihood="bernoulli", progress=False)
    q = read_fit(adata, "lfm").posterior
    found = without_odd_counts(q, None)
    assert found.posterior is q
    assert found.taken is found.gross is found.share is None


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_where_no_count_is_odd_nothing_changes(likelihood, blocks):
    adata = lfm.datasets.simulate(60, 30, 1, likelihood=likelihood, mu=-1)
    lfm.tl.fit(adata, 1, likelihood=likelihood, progress=False)
    q = read_fit(adata, "lfm").posterior
    found = without_odd_counts(q, blocks(torch.zeros(60, 30), 60))
    assert len(found.taken.share) == 0
    assert torch.equal(found.posterior.cell_mean, q.cell_mean)
    assert found.gross.share < 1e-20
