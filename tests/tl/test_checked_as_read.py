"""Counts in a file that a fit normalises and checks as it reads them: two readings and the minibatches, equal bits."""

from __future__ import annotations

import warnings
from functools import cache, partial

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from on_disk import backed
from scvi_lfm.data.dask_chunks import DaskSource
from scvi_lfm.data.kind import UNIT_CELLS
from scvi_lfm.data.normalised_as_read import NormalisedAsRead, can_be_judged_later
from scvi_lfm.data.opening import open_source
from scvi_lfm.data.reader import SpanReader
from scvi_lfm.data.stored import Stored
from scvi_lfm.data.summary import row_sums

N, M, BATCH = 150, 60, 50

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit did not converge:UserWarning"),
    pytest.mark.usefixtures("nothing_is_read_in"),
]


@pytest.fixture
def n_read(monkeypatch):
    """Cells that were asked of files and of chunks, in a list of one."""
    found, rows = [0], SpanReader.rows

    def counted(source, which):
        block = rows(source, which)
        found[0] += block.shape[0]
        return block

    monkeypatch.setattr(SpanReader, "rows", counted)
    monkeypatch.setattr(DaskSource, "rows", counted)
    return found


@cache
def made() -> ad.AnnData:
    x = np.random.default_rng(0).poisson(0.7, (N, M)).astype(np.float32)
    x[:, 3] = 0
    x[7] = 0
    # sums of halves and thirds are not exact
    x *= np.random.default_rng(1).uniform(0.5, 1.5, (N, M)).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(x))


def fitted(adata, **options):
    """The fit, and what was warned of."""
    usual = {"n_factors": 2, "normalize": 1e4, "batch_size": BATCH, "max_epochs": 2, "tol": 1e-9, "progress": False}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        lfm.tl.fit(adata, **(usual | options))
    return adata, sorted(str(one.message) for one in told)


def is_judged_later(adata):
    source = open_source(adata, None)
    return can_be_judged_later(source, source.n_stored)


def changed(cell, value):
    x = made().X.toarray()
    x[cell, 5] = value
    return ad.AnnData(sp.csr_matrix(x))


@pytest.mark.parametrize("options", [{}, {"batch_size": N}, {"noise": "cell_gene"}, {"n_factors": "auto"}], ids=str)
def test_two_readings_and_the_minibatches_give_the_bits_and_the_words_of_memory(tmp_path, n_read, options):
    found = {}
    for name, adata in (("file", backed(made(), tmp_path)), ("memory", made().copy())):
        n_read[0] = 0
        found[name] = *fitted(adata, **options), n_read[0] / N
    (one, told, readings), (other, words, _) = found["file"], found["memory"]
    for name in ("X_lfm", "X_lfm_sd"):
        np.testing.assert_array_equal(one.obsm[name], other.obsm[name])
    np.testing.assert_array_equal(one.varm["lfm"], other.varm["lfm"])
    np.testing.assert_array_equal(one.obs["lfm_total"], other.obs["lfm_total"])
    assert one.uns["lfm"]["values"] == other.uns["lfm"]["values"]
    assert told == words
    assert any("1 cell(s) of X are all zero" in text for text in told)
    readings -= UNIT_CELLS / N  # of which it is asked whether they are logarithms already
    # the first epoch leaves out the minibatch of the start
    assert readings == pytest.approx(1 if options.get("batch_size") == N else 2 + one.uns["lfm"]["elbo"]["epoch"][-1])


def test_lazy_values_are_read_as_often_but_for_a_few_cells_that_tell_how_many_are_stored(tmp_path, n_read):
    from_array = partial(pytest.importorskip("dask.array").from_array, chunks=(40, M), asarray=False)
    lazy, memory = fitted(ad.AnnData(from_array(made().X)))[0], fitted(made().copy())[0]
    # the first epoch leaves out the minibatch of the start
    assert n_read[0] == N * (2 + lazy.uns["lfm"]["elbo"]["epoch"][-1]) + 4 + UNIT_CELLS
    np.testing.assert_array_equal(lazy.obsm["X_lfm"], memory.obsm["X_lfm"])
    np.testing.assert_array_equal(lazy.obs["lfm_total"], memory.obs["lfm_total"])
    assert lazy.uns["lfm"]["values"] == memory.uns["lfm"]["values"]
    with pytest.raises(ValueError, match="X holds 1 value"):
        fitted(ad.AnnData(from_array(changed(N - 1, -1.0).X)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("cell", [0, N - 1])
def test_values_that_cannot_be_normalised_are_named_as_in_memory(tmp_path, value, cell):
    adata = changed(cell, value)
    with pytest.raises(ValueError, match="X holds 1 value") as in_memory:
        fitted(adata.copy())
    file = backed(adata, tmp_path)
    with pytest.raises(ValueError, match="X holds 1 value") as as_read:
        fitted(file)
    assert str(as_read.value) == str(in_memory.value)
    assert not file.uns
    assert not list(file.obs)


def test_values_of_which_every_one_is_the_same(tmp_path):
    adata = made().copy()
    adata.X = sp.csr_matrix((N, M), dtype=np.float32)
    file = backed(adata, tmp_path)
    with pytest.raises(ValueError, match="Every value of X is the same"):
        fitted(file)
    assert not file.uns


def test_a_scale_that_float32_cannot_hold(tmp_path):
    file = backed(made(), tmp_path)
    for target in (1e39, 1e-45):
        with pytest.raises(ValueError, match="is too (large|small) for float32"):
            fitted(file, normalize=target)
    assert not file.uns


def test_logarithms_that_are_to_be_normalised_are_warned_of(tmp_path):
    adata = made().copy()
    adata.X.data = np.log1p(adata.X.data)
    _, told = fitted(backed(adata, tmp_path))
    assert any("look like logarithms already" in text for text in told)


def test_what_asks_for_all_values_first_reads_them_first(tmp_path, n_read):
    file = backed(made(), tmp_path)
    fitted(file, batch_size=N)
    once = n_read[0]
    for options in ({"checkpoint": tmp_path / "fit"}, {"mask_var": np.arange(M) < 40}):
        n_read[0] = 0
        fitted(file, batch_size=N, **options)
        assert n_read[0] >= 1.9 * once


def test_values_that_may_share_a_level_are_read_first(tmp_path):
    full = ad.AnnData(sp.csr_matrix(1 + np.random.default_rng(0).poisson(3, (N, M)).astype(np.float32)))
    assert not is_judged_later(backed(full, tmp_path))
    assert is_judged_later(backed(made(), tmp_path))
    assert not is_judged_later(made())


def test_some_cells_bound_the_number_of_values_that_are_stored(tmp_path):
    """Of a dask array; where they cannot show that values share no level, all are read first."""
    da = pytest.importorskip("dask.array")
    for share, later in ((0.3, True), (0.9, False)):
        x = sp.random_array((400, M), density=share, format="csr", rng=np.random.default_rng(0))
        source = open_source(ad.AnnData(da.from_array(x, chunks=(100, M), asarray=False)), None)
        stored = Stored.of(source)
        assert stored.about == pytest.approx(x.nnz, rel=0.2)
        assert x.nnz <= stored.at_most < 400 * M
        assert can_be_judged_later(source, stored.at_most) == later
    assert Stored.of(open_source(made(), None)) == Stored(made().X.nnz, made().X.nnz)


def test_notes_are_of_cells_read_among_their_neighbours(tmp_path):
    counts = open_source(backed(made(), tmp_path), None)
    source = NormalisedAsRead.of(counts, 1e4, Stored.of(counts))
    source.rows(np.arange(N))
    source.rows(slice(0, 90))
    source.rows(slice(60, N))  # some were seen: none is noted twice
    assert source.summaries() is None
    source.rows(slice(90, N))
    counts, logs = source.summaries()
    np.testing.assert_array_equal(counts.cell_sums, open_source(made(), None).summary.cell_sums)
    assert counts.n_stored == logs.n_stored == made().X.nnz
    assert counts.empty_genes[3]


def test_the_sum_of_a_cell_does_not_depend_on_where_it_lies():
    x = sp.random(400, 9_000, 0.9, format="csr", dtype=np.float32, random_state=0)
    x.data = (x.data * 1000).astype(np.float32)
    x = sp.csr_array(x)
    whole = row_sums(x)
    for start, stop in ((0, 1), (1, 3), (7, 150), (399, 400)):
        np.testing.assert_array_equal(row_sums(x[start:stop]), whole[start:stop])


def test_a_plan_counts_no_reading_for_checks(tmp_path):
    file = backed(made(), tmp_path)
    options = {"normalize": 1e4, "batch_size": BATCH}
    assert lfm.plan(file, 2, **options).readings["check"] == 0
    assert lfm.plan(file, 2, **options, checkpoint=tmp_path / "fit").readings["check"] > 0.9
    assert lfm.plan(made(), 2, **options).readings["check"] > 0.9
