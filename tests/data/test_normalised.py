"""Counts that are log-normalised as they are read."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_lfm.data import MemorySource, read_matrix
from scvi_lfm.data.normalised import log_normalised
from scvi_lfm.data.summary import stored_values

N, M, TARGET = 30, 12, 100.0
CELLS, GENES = pd.RangeIndex(N).astype(str), pd.RangeIndex(M).astype(str)
COUNTS = np.random.default_rng(0).poisson(1.0, (N, M)).astype(np.float32)
COUNTS[4] = 0
TOTALS = COUNTS.sum(1, keepdims=True)
LOGS = np.log1p(TARGET * COUNTS.astype(float) / np.where(TOTALS, TOTALS, 1))
close = {"rtol": 1e-6}


@pytest.fixture
def source(source_of, form, parts):
    """Normalised counts, on a source of every kind."""
    return log_normalised(source_of(form(COUNTS)), TARGET, "X", CELLS, GENES)[0]


def dense(block):
    return block.toarray() if sp.issparse(block) else block


@pytest.mark.parametrize("which", [slice(None), slice(3, 9), np.array([4, 2, 29])], ids=str)
@pytest.mark.half_slow
def test_rows(source, which):
    block = source.rows(which)
    assert block.dtype == source.dtype == np.float32
    np.testing.assert_allclose(dense(block), LOGS[which], **close)


@pytest.mark.half_slow
def test_what_else_a_source_answers(source):
    assert source.shape == (N, M)
    np.testing.assert_allclose(np.concatenate([dense(block) for _, block in source.parts()]), LOGS, **close)
    cell, gene = np.array([7, 0, 4, 7]), np.array([3, 11, 2, 0])
    np.testing.assert_allclose(source.entries(cell, gene), LOGS[cell, gene], **close)
    found = source.summary
    np.testing.assert_allclose(found.cell_sums, LOGS.sum(1), **close)
    assert found.maximum == pytest.approx(LOGS.max(), rel=1e-6)
    assert (found.n_present, found.n_stored) == ((COUNTS > 0).sum(), source.source.n_stored)
    assert list(np.flatnonzero(found.empty_cells)) == [4]
    if source.is_sparse:
        np.testing.assert_array_equal(source.pattern().toarray(), COUNTS > 0)


@pytest.mark.half_slow
def test_totals_stay_where_entries_and_genes_go(source):
    genes = np.array([1, 5, 6])
    np.testing.assert_allclose(dense(source.at_genes(genes).rows(slice(None))), LOGS[:, genes], **close)
    mask = np.random.default_rng(1).random(COUNTS.shape) < 0.3
    rest = source.without(sp.csr_array(mask))
    np.testing.assert_allclose(dense(rest.rows(slice(None))), np.where(mask, 0, LOGS), **close)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
@pytest.mark.parametrize("sparse", [True, False])
def test_any_type_of_counts(dtype, sparse):
    values = (COUNTS > 0).astype(dtype)
    before = (sp.csr_array if sparse else np.array)(values)
    block = log_normalised(MemorySource(before), TARGET, "X", CELLS, GENES)[0].rows(slice(None))
    total = values.astype(float).sum(1, keepdims=True)
    expected = np.log1p(TARGET * values.astype(float) / np.where(total, total, 1))
    np.testing.assert_allclose(dense(block), expected, **close)
    np.testing.assert_array_equal(dense(before), values)
    if sparse:
        assert np.shares_memory(block.indices, before.indices)
        assert not np.shares_memory(stored_values(block), before.data)


def test_the_gate_takes_totals_over_all_genes_or_those_of_a_fit():
    adata, genes = ad.AnnData(COUNTS.copy()), np.arange(M) < 5
    matrix = read_matrix(adata, genes=genes, normalize=TARGET)
    np.testing.assert_allclose(matrix.stored(), LOGS[:, genes], **close)
    np.testing.assert_array_equal(matrix.normalised.totals, TOTALS[:, 0])
    kinds = matrix.normalised.kind, matrix.kind
    assert [kind.maximum for kind in kinds] == pytest.approx([COUNTS.max(), LOGS[:, genes].max()])
    again = read_matrix(adata[:, genes].copy(), normalize=TARGET, totals=matrix.normalised.totals)
    np.testing.assert_array_equal(again.stored(), matrix.stored())


def test_a_value_that_is_not_finite_spoils_a_total():
    adata = ad.AnnData(COUNTS.copy())
    adata.X[3, 7] = np.nan
    assert read_matrix(adata, genes=np.arange(M) < 5).shape == (N, 5)
    with pytest.raises(ValueError, match="the first is nan in cell '3', gene '7'"):
        read_matrix(adata, genes=np.arange(M) < 5, normalize=TARGET)


@pytest.mark.parametrize(("target", "word"), [(1e39, "large"), (1e-38, "small")])
def test_what_float32_cannot_scale(target, word):
    with pytest.raises(ValueError, match=f"too {word} for float32 to scale the cells of X to, whose totals go from 0"):
        log_normalised(MemorySource(COUNTS), target, "X", CELLS, GENES)


@pytest.mark.parametrize("genes", [None, np.array([1, 5, 6])], ids=["all", "some"])
@pytest.mark.parametrize("totals", [None, np.full(N, 7, np.float32)], ids=["sums", "given"])
@pytest.mark.half_slow
def test_figures_of_counts_and_logs_come_from_one_reading(source_of, form, totals, genes, monkeypatch):
    counts = source_of(form(COUNTS))
    n_read, read = 0, type(counts).rows

    def rows(source, which):
        nonlocal n_read
        block = read(source, which)
        n_read += block.shape[0]
        return block

    with monkeypatch.context() as patch:
        patch.setattr(type(counts), "rows", rows)
        source, normalised = log_normalised(counts, TARGET, "X", CELLS, GENES, totals, genes)
        found, _ = source.summary, counts.summary
        assert n_read == N
    alone = log_normalised(MemorySource(COUNTS), TARGET, "X", CELLS, GENES, totals)[0]
    logs = (alone if genes is None else alone.at_genes(genes)).rows(slice(None))
    expected = MemorySource(sp.csr_array(logs) if source.is_sparse else logs).summary
    for name in ("n_present", "n_whole", "maximum"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("cell_sums", "empty_cells", "empty_genes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(normalised.totals, COUNTS.sum(1) if totals is None else totals)
