from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import binomtest

import scvi_lfm as lfm
from scvi_lfm.data.on_disk import SparseFile

N, M = 60, 40


def sparse(rng=0, density=0.2, *, n=N, m=M):
    values = sp.random(n, m, density, format="csr", rng=np.random.default_rng(rng))
    values.data = np.random.default_rng(rng).integers(1, 6, values.nnz).astype(np.float32)
    return ad.AnnData(values)


def held_of(adata, *args, key_added="held_out", **options):
    assert lfm.tl.hold_out(adata, *args, key_added=key_added, **options) is None
    return adata.layers[key_added]


def test_zeros_are_data_and_as_many_of_them_are_held_out():
    adata = sparse()
    mask = held_of(adata, 0.25)
    assert isinstance(mask, sp.csr_matrix)
    assert mask.dtype == bool
    assert mask.shape == (N, M)
    assert mask.has_canonical_format
    values, held = adata.X.toarray(), mask.toarray()
    assert (held & (values != 0)).sum() == round(0.25 * adata.X.nnz)
    assert (held & (values == 0)).sum() == round(0.25 * adata.X.nnz)
    assert mask.data.all()


def test_only_stored_entries_of_ratings_are_held_out_stored_zeros_among_them():
    adata = sparse()
    adata.X.data[::2] = 0
    mask = held_of(adata, 0.25, observed="stored").toarray()
    pattern = np.zeros((N, M), dtype=bool)
    pattern[adata.X.nonzero()] = True
    stored = sp.csr_matrix((np.ones(adata.X.nnz), adata.X.indices, adata.X.indptr), shape=(N, M)).toarray() > 0
    assert mask.sum() == round(0.25 * adata.X.nnz)
    assert not (mask & ~stored).any()
    assert (mask & stored & ~pattern).any()


def test_stored_zeros_are_zeros_where_zeros_are_data():
    adata = sparse(density=0.5)
    adata.X.data[::2] = 0
    values = adata.X.toarray()
    held = held_of(adata, 0.25).toarray()
    assert (held & (values != 0)).sum() == (held & (values == 0)).sum() == round(0.25 * np.count_nonzero(values))


def test_dense_data_hold_out_no_more_zeros_than_the_fraction():
    values = np.ones((20, 30), dtype=np.float32)
    values[:, :4] = 0
    held = held_of(ad.AnnData(values), 0.1).toarray()
    assert held[:, 4:].sum() == 52
    assert held[:, :4].sum() == 8
    without = held_of(ad.AnnData(np.ones((20, 30), dtype=np.float32)), 0.1)
    assert without.nnz == 60


@pytest.mark.half_slow
@pytest.mark.parametrize("value", ["zeros", "values"])
@pytest.mark.slow
def test_every_entry_is_as_likely_to_be_drawn(value):
    adata = sparse(density=0.5, n=8, m=12)
    wanted = (adata.X.toarray() == 0) == (value == "zeros")
    times = 2000
    counts = np.zeros((8, 12))
    rng = np.random.default_rng(0)
    for _ in range(times):
        counts += held_of(adata, 0.2, rng=rng).toarray()
    share = counts[wanted] / times
    expected = share.mean()
    # 4.5 standard deviations of a share, over fewer than 100 entries
    assert np.abs(share - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / times)


def test_a_row_keeps_one_of_its_entries(caplog, settings):
    adata = ad.AnnData(sp.csr_matrix(np.eye(50, dtype=np.float32) + np.eye(50, k=1, dtype=np.float32)))
    settings.verbosity = 2
    with caplog.at_level(logging.INFO, logger="scvi_lfm"):
        mask = held_of(adata, 0.9, observed="stored")
    left = adata.X.toarray().astype(bool) & ~mask.toarray()
    assert left.any(axis=1).all()
    # one of the two of each row, as the last row has one. Both of a row stay with a probability of 0.01: of 49 rows,
    # more than five such ones have one of 1e-5
    assert 44 <= mask.nnz <= 49
    assert "hold_out kept one of the entries of" in caplog.text


def test_rows_without_entries_stay_without():
    values = np.zeros((6, 5), dtype=np.float32)
    values[::2] = 1
    held = held_of(ad.AnnData(sp.csr_matrix(values)), 0.5, observed="stored").toarray()
    assert not held[1::2].any()
    assert held.sum() == 8 or held.sum() == 7


def test_molecules_are_thinned():
    adata = lfm.datasets.simulate(300, 200, 3, likelihood="poisson")
    held = held_of(adata, 0.3, by="molecules")
    train = adata.layers["held_out_train"]
    assert held.dtype == train.dtype == np.float32
    assert held.data.all()
    assert train.data.all()
    np.testing.assert_array_equal((held + train).toarray(), adata.X.toarray())
    total = int(adata.X.sum())
    assert binomtest(int(held.sum()), total, 0.3).pvalue > 1e-4
    # entries of one count: each is held out on its own
    ones = adata.X.toarray() == 1
    assert binomtest(int(held.toarray()[ones].sum()), int(ones.sum()), 0.3).pvalue > 1e-4


def test_a_row_keeps_one_of_its_molecules():
    values = np.zeros((200, 5), dtype=np.float32)
    values[:, 1], values[:, 3] = 1, 2
    adata = ad.AnnData(values)
    held = held_of(adata, 0.99, by="molecules").toarray()
    left = adata.layers["held_out_train"].toarray()
    np.testing.assert_array_equal(held + left, values)
    assert left.sum(axis=1).min() == 1
    lost = left.sum(axis=1) == 1
    # a molecule was kept, not an entry: two in three are of the second gene
    assert binomtest(int(left[lost, 3].sum()), int(lost.sum()), 2 / 3).pvalue > 1e-4


def test_rows_are_held_out_whole():
    adata = sparse()
    assert lfm.tl.hold_out(adata, 0.25, by="rows") is None
    assert adata.obs["held_out"].dtype == bool
    assert adata.obs["held_out"].sum() == 15
    assert not set(adata.layers) - {None}


@pytest.mark.parametrize("by", ["entries", "molecules", "rows"])
def test_seeds_copies_and_names(by):
    adata = sparse()

    def result(adata, key):
        return adata.obs[key].to_numpy() if by == "rows" else adata.layers[key].toarray()

    before = adata.copy()
    first = lfm.tl.hold_out(adata, 0.3, by=by, key_added="mine", copy=True)
    assert not set(adata.layers) - {None}
    assert list(adata.obs.columns) == list(before.obs.columns)
    again = lfm.tl.hold_out(adata, 0.3, by=by, rng=np.random.default_rng(0), copy=True)
    other = lfm.tl.hold_out(adata, 0.3, by=by, rng=1, copy=True)
    np.testing.assert_array_equal(result(first, "mine"), result(again, "held_out"))
    assert (result(first, "mine") != result(other, "held_out")).any()
    np.testing.assert_array_equal(first.X.toarray(), adata.X.toarray())


def test_a_layer_is_read():
    adata = sparse()
    adata.layers["ratings"] = sparse(1).X
    mask = held_of(adata, 0.3, observed="stored", layer="ratings")
    assert not mask.toarray()[adata.layers["ratings"].toarray() == 0].any()


BAD = {
    "fraction 0": ({"fraction": 0}, ValueError, "`fraction` must lie between 0 and 1, found 0"),
    "fraction 1": ({"fraction": 1.0}, ValueError, "`fraction` must lie between 0 and 1, found 1"),
    "fraction text": ({"fraction": "0.1"}, TypeError, "`fraction` must be a number"),
    "fraction too small": ({"fraction": 1e-6}, ValueError, "nothing of X was drawn with 1e-06"),
    "few rows": ({"fraction": 0.001, "by": "rows"}, ValueError, "0.001 of 60 row.* is 0; at least one"),
    "all rows": ({"fraction": 0.999, "by": "rows"}, ValueError, "0.999 of 60 row.* is 60; .* one stay"),
    "by": ({"by": "columns"}, ValueError, "`by` must be one of 'entries', 'molecules', 'rows', found 'columns'"),
    "observed": ({"observed": "some"}, ValueError, "`observed` must be one of 'all', 'stored', found 'some'"),
    "observed rows": ({"observed": "stored", "by": "rows"}, ValueError, "by='rows' holds out none. Leave it out"),
    "layer": ({"layer": "rating"}, KeyError, "There is no layer 'rating'. Did you mean 'ratings'"),
    "rng": ({"rng": None}, TypeError, "`rng` must be an int or a numpy.random.Generator"),
    "key": ({"key_added": "a/b"}, ValueError, "`key_added` must not be empty and must not hold '/'"),
    "overwrites": ({"layer": "ratings", "key_added": "ratings"}, ValueError, "which is read, would be overwritten"),
    "overwrites train": (
        {"layer": "x_train", "key_added": "x", "by": "molecules"},
        ValueError,
        "layers.'x_train'., which is read, would be overwritten",
    ),
    "halves": (
        {"layer": "halves", "by": "molecules"},
        ValueError,
        r"holds 1 value.*not whole numbers; the first is 0.5 in cell '3', gene '7'. Pass the layer that holds raw",
    ),
    "dense": (
        {"layer": "dense", "observed": "stored"},
        ValueError,
        "a sparse matrix, and layers.'dense'. is dense",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, error, words = BAD[name]
    adata = sparse()
    adata.layers["ratings"] = adata.layers["x_train"] = adata.X.copy()
    adata.layers["dense"] = adata.X.toarray()
    adata.layers["halves"] = sp.csr_matrix(([0.5, 1], ([3, 9], [7, 2])), shape=adata.shape)
    before = list(adata.layers)
    with pytest.raises(error, match=words):
        lfm.tl.hold_out(adata, **options)
    assert list(adata.layers) == before
    assert "held_out" not in adata.obs


def test_not_an_anndata():
    with pytest.raises(TypeError, match="`adata` must be an AnnData"):
        lfm.tl.hold_out(np.ones((3, 3)))


@pytest.mark.parametrize("options", [{}, {"by": "molecules", "fraction": 0.9}, {"observed": "stored"}], ids=str)
def test_a_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch, options):
    in_memory = lfm.datasets.simulate(90, 40, 2, likelihood="poisson", mu=0.0)
    in_memory.X = sp.csr_matrix(in_memory.X)
    in_memory.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    monkeypatch.setattr("scvi_lfm.data.gate.MOST_BYTES_READ_IN", -1)
    monkeypatch.setattr("scvi_lfm.data.source.VALUES_PER_PART", 400)
    longest, span = [0], SparseFile.span

    def measured(source, start, stop):
        longest[0] = max(longest[0], stop - start)
        return span(source, start, stop)

    monkeypatch.setattr(SparseFile, "span", measured)
    for adata in (in_memory, backed):
        lfm.tl.hold_out(adata, **options)
    assert set(backed.layers) == set(in_memory.layers)
    for name in in_memory.layers:
        assert (backed.layers[name] != in_memory.layers[name]).nnz == 0
    assert 0 < longest[0] < 45
