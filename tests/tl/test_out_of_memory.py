"""Files and dask arrays that cannot be read, or written into: what is said, with the AnnData as it was."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.data import MemorySource, read_matrix
from scvi_lfm.data.on_disk import SparseFile
from scvi_lfm.data.opening import open_source, source_of
from scvi_lfm.data.selected import Selected

N, M = 60, 20

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit did not converge:UserWarning"),
    pytest.mark.usefixtures("nothing_is_read_in"),
]


@pytest.fixture
def adata():
    x = sp.random(N, M, 0.5, format="csr", dtype=np.float32, random_state=0)
    obs = pd.DataFrame({"half": pd.Categorical(np.where(np.arange(N) < N // 2, "a", "b"))})
    return ad.AnnData(x, obs=obs.set_axis(map(str, obs.index)), var=pd.DataFrame(index=[f"g{j}" for j in range(M)]))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.h5ad"


def fit(adata, **options):
    lfm.tl.fit(adata, 2, max_epochs=2, progress=False, **options)


def backed(adata, path):
    adata.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


def test_a_file_by_genes_is_refused_before_it_is_read(adata, path):
    adata.X = adata.X.tocsc()
    adata = backed(adata, path)
    with pytest.raises(ValueError, match=r"X is compressed by genes \(CSC\).*to_memory\(\).*tocsr\(\)"):
        fit(adata)
    assert not adata.uns


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_file_by_genes_is_named_where_it_is_read_lazily_too(tmp_path, suffix):
    """Of more genes than anndata puts into a chunk."""
    pytest.importorskip("xarray")
    path, adata = tmp_path / f"cells.{suffix}", ad.AnnData(sp.random(30, 1500, 0.1, format="csc", dtype=np.float32))
    getattr(adata, f"write_{suffix}")(path)
    lazy = ad.experimental.read_lazy(path)
    with pytest.raises(ValueError, match=r"X is compressed by genes \(CSC\).*to_memory\(\).*tocsr\(\)"):
        fit(lazy)
    assert source_of(lazy.to_memory().X.tocsr(), "X").shape == (30, 1500)


@pytest.mark.parametrize("make", ["backed", "lazy", "dask"])
def test_a_value_that_is_none_is_named(adata, path, make):
    at = adata.X.indptr[34]
    adata.X.data[at] = np.nan
    gene = f"g{adata.X.indices[at]}"
    if make == "dask":
        adata.X = pytest.importorskip("dask.array").from_array(adata.X, chunks=(9, M), asarray=False)
    else:
        adata.write_h5ad(path)
        if make == "lazy":
            pytest.importorskip("xarray")
        adata = ad.read_h5ad(path, backed="r") if make == "backed" else ad.experimental.read_lazy(path)
    with pytest.raises(ValueError, match=rf"X holds 1 value\(s\) that are NaN.*nan in cell '34', gene '{gene}'"):
        fit(adata)
    assert not dict(adata.uns)


def test_a_file_that_was_closed(adata, path):
    adata.write_h5ad(path)
    with h5py.File(path) as file:
        values = ad.io.sparse_dataset(file["X"])
        source, adata = source_of(values, "X"), ad.AnnData(values, obs=adata.obs, var=adata.var)
    with pytest.raises(OSError, match=r"values of X could not be read at cells 0 to \d+ \(.*open it again"):
        source.rows(slice(0, 3))
    with pytest.raises(OSError, match=r"values of X could not be read \(.*open it again"):
        fit(adata)
    assert not adata.uns


def test_a_compressed_chunk_that_is_damaged(adata, path):
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path, "a") as file:
        file["X/data"].id.write_direct_chunk((0,), b"not what gzip makes")
    adata = ad.read_h5ad(path, backed="r")
    with pytest.raises(OSError, match=r"X could not be read at cells 0 to \d+ \(a chunk cannot be decompressed"):
        fit(adata)
    assert not adata.uns


def test_a_compressed_file_that_was_closed(adata, path):
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        source = source_of(ad.io.sparse_dataset(file["X"]), "X")
    with pytest.raises(OSError, match=r"values of X could not be read at cells 0 to 2 \(.*open it again"):
        source.rows(slice(0, 3))


def test_a_backed_file_that_was_closed_is_opened_again(adata, path):
    adata = backed(adata, path)
    adata.file.close()
    fit(adata)
    assert "X_lfm" in adata.obsm


@pytest.mark.parametrize("cut", ["data", "indices", "indptr"])
def test_a_file_that_lacks_its_end(adata, path, cut):
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "X", adata.X)
        short = file["X"][cut][:-5]
        del file["X"][cut]
        file["X"][cut] = short
        with pytest.raises(OSError, match=r"file of layers\['x'\] is damaged: .*60 cells.*Write it anew"):
            source_of(ad.io.sparse_dataset(file["X"]), "layers['x']")


def test_genes_that_are_not_there(adata, path):
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "X", adata.X)
        file["X"]["indices"][adata.X.indptr[30]] = M
        source = source_of(ad.io.sparse_dataset(file["X"]), "X")
        with pytest.raises(OSError, match=r"X could not be read at cells 25 to 39 \(it names genes that there are not"):
            source.rows(slice(25, 40))


class Endless:
    """A column of a file with more values than 32 bits count, of which each is its position modulo something."""

    def __init__(self, size, modulo, dtype):
        self.shape, self.dtype, self._modulo = (size,), np.dtype(dtype), modulo

    def __getitem__(self, part):
        return (np.arange(part.start, part.stop) % self._modulo).astype(self.dtype)


def test_more_values_than_32_bits_count():
    n, m, per_cell = 2**21, 2**12, 2**11
    starts = np.arange(n + 1, dtype=np.int64) * per_cell
    assert starts[-1] == 2**32
    source = SparseFile(Endless(2**32, 7, np.float32), Endless(2**32, per_cell, np.int64), starts, m, "X")
    assert source.n_stored == 2**32
    cells = np.array([3, 2**20 + 1, n - 1])
    block = source.rows(cells)
    assert block.indices.dtype == np.int32
    for row, cell in enumerate(cells):
        np.testing.assert_array_equal(block[[row]].data, np.arange(cell * per_cell, (cell + 1) * per_cell) % 7)
        np.testing.assert_array_equal(block[[row]].indices, np.arange(per_cell))
    last = source.rows(slice(n - 2, n))
    np.testing.assert_array_equal(last.data, np.arange(2**32 - 2 * per_cell, 2**32) % 7)


def test_only_what_is_asked_for_is_read(adata, path):
    whole, adata = adata.X.copy(), backed(adata, path)
    source = source_of(adata.X, "X")
    read = []

    class Spy:
        def __init__(self, held):
            self.held, self.dtype = held, held.dtype

        def __getitem__(self, part):
            read.append((part.start, part.stop))
            return self.held[part]

    spied = SparseFile(Spy(source.values), Spy(source.indices), source.starts, M, "X")
    block = spied.rows(slice(10, 20))
    assert set(read) == {(whole.indptr[10], whole.indptr[20])}
    np.testing.assert_array_equal(block.toarray(), whole[10:20].toarray())


@pytest.mark.parametrize("limit", [-1, 0])
def test_few_values_are_read_in_at_once(adata, path, monkeypatch, limit):
    bytes_read = adata.X.nnz * 8
    monkeypatch.setattr("scvi_lfm.data.gate.MOST_BYTES_READ_IN", bytes_read + limit)
    source = read_matrix(backed(adata, path)).source
    assert isinstance(source, SparseFile if limit else MemorySource)
    np.testing.assert_array_equal(source.whole().toarray(), adata.X.toarray())


def test_distant_cells_are_read_by_themselves(adata, path, monkeypatch):
    monkeypatch.setattr("scvi_lfm.data.reader.VALUES_BETWEEN", 30)
    whole, adata = adata.X.copy(), backed(adata, path)
    source, spans = source_of(adata.X, "X"), []
    read = type(source).span
    monkeypatch.setattr(type(source), "span", lambda *args: spans.append(args[1:]) or read(*args))
    cells = np.array([50, 3, 5, 51, 3])
    block = source.rows(cells)
    assert spans == [(3, 6), (50, 52)]
    np.testing.assert_array_equal(block.toarray(), whole[cells].toarray())


@pytest.mark.parametrize("cells", [np.arange(N) % 3 > 0, np.array([40, 2, 7, 33, 21, 8, 9, 10]), slice(10, 50)])
@pytest.mark.parametrize("genes", [slice(None), np.array([5, 0, 12, 3, 19])])
def test_a_part_of_a_backed_file_is_read_where_it_lies(adata, path, cells, genes):
    whole, part = adata, backed(adata, path)[cells, genes]
    source = open_source(part, None)
    assert isinstance(source, Selected)
    np.testing.assert_array_equal(source.whole().toarray(), whole.X[cells][:, genes].toarray())
    with pytest.raises(ValueError, match=r"view of a backed AnnData, into which nothing can be written.*to_memory\(\)"):
        fit(part)


def test_a_part_of_a_backed_file_is_judged_as_one_in_memory_is(adata, path):
    whole, adata = adata.copy(), backed(adata, path)
    fit(adata)
    fit(whole)
    half = adata.obs["half"] == "b"
    found, expected = (lfm.tl.check(each[half], refit=False) for each in (adata, whole))
    pd.testing.assert_frame_equal(found.calibration, expected.calibration, check_exact=True)


@pytest.mark.parametrize(
    "tool",
    [
        fit,
        lfm.tl.anomalies,
        lambda adata, **options: lfm.tl.rank_genes(adata, "half", **options),
        lambda adata, **options: lfm.tl.rank_cells(adata, "g1", **options),
        lfm.tl.hold_out,
        lambda adata, **options: lfm.tl.project(adata, adata, key_added="again", **options),
    ],
)
def test_a_backed_file_is_not_copied(adata, path, tool):
    adata = backed(adata, path)
    fit(adata)
    before = set(adata.uns), set(adata.obs), set(adata.layers)
    with pytest.raises(ValueError, match=r"`copy`: a backed AnnData is copied into a new file only.*to_memory\(\)"):
        tool(adata, copy=True)
    assert (set(adata.uns), set(adata.obs), set(adata.layers)) == before
    tool(adata.to_memory(), copy=True)


def test_a_lazily_read_file_is_copied_and_written(adata, path, tmp_path):
    pytest.importorskip("xarray")
    adata.write_h5ad(path)
    lazy = ad.experimental.read_lazy(path)
    fit(adata)
    lazy = lfm.tl.fit(lazy, 2, max_epochs=2, progress=False, copy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = lazy.to_memory()
    np.testing.assert_array_equal(stored.obsm["X_lfm"], adata.obsm["X_lfm"])
    np.testing.assert_array_equal(stored.obs["lfm_a"], adata.obs["lfm_a"])
    stored.write_h5ad(tmp_path / "again.h5ad")
    lfm.tl.rank_genes(ad.read_h5ad(tmp_path / "again.h5ad"), "half")


def test_a_lazily_read_file_loses_what_another_fit_does_not_have(adata, path):
    pytest.importorskip("xarray")
    adata.write_h5ad(path)
    lazy = ad.experimental.read_lazy(path)
    fit(lazy, noise="cell_gene")
    assert "lfm_sigma" in lazy.obs
    fit(lazy)
    assert "lfm_sigma" not in lazy.obs
    assert "half" in lazy.obs
    lfm.tl.rank_genes(lazy, "half")


def test_a_lazily_read_file_is_left_as_it_was_where_writing_fails(adata, path, monkeypatch):
    pytest.importorskip("xarray")
    adata.write_h5ad(path)
    lazy = ad.experimental.read_lazy(path)
    fit(lazy)
    before = {name: set(getattr(lazy, name)) for name in ("obs", "var", "obsm", "varm", "uns")}
    mean = lazy.obs["lfm_a"].to_numpy()
    monkeypatch.setitem(lfm.posterior.store.write._VALUES, "sigma", lambda it: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(lazy, rng=3, key_added="other")
    assert {name: set(getattr(lazy, name)) for name in before} == before
    np.testing.assert_array_equal(lazy.obs["lfm_a"], mean)
    assert list(lazy.obs_names) == list(adata.obs_names)


def test_dask_chunks_of_unknown_size(adata):
    array = pytest.importorskip("dask.array")
    x = array.from_array(adata.X.toarray(), chunks=(9, M))
    with pytest.raises(ValueError, match=r"X is a dask array with chunks of unknown size.*X\.compute_chunk_sizes\(\)"):
        source_of(x[x[:, 0] > 0], "X")


@pytest.mark.parametrize("chunk", [lambda block: np.ma.masked_array(block), lambda block: pd.DataFrame(block)])
def test_dask_chunks_that_are_no_arrays(adata, chunk):
    array = pytest.importorskip("dask.array")
    x = array.from_array(adata.X.toarray(), chunks=(9, M)).map_blocks(chunk, meta=np.empty((0, 0), np.float32))
    with pytest.raises(TypeError, match=r"A chunk of X is a .*; chunks must be numpy arrays or scipy's"):
        source_of(x, "X").rows(slice(3))


def test_dask_chunks_that_fail(adata):
    array = pytest.importorskip("dask.array")

    def fail(block):
        msg = "the disk is gone"
        raise OSError(msg)

    x = array.from_array(adata.X.toarray(), chunks=(9, M)).map_blocks(fail, meta=np.empty((0, 0), np.float32))
    with pytest.raises(OSError, match=r"X could not be read at cells 9 to 17 \(the disk is gone\)"):
        source_of(x, "X").rows(slice(10, 12))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore:Sending large graph")
def test_chunks_that_a_cluster_holds(adata):
    distributed = pytest.importorskip("distributed")
    array = pytest.importorskip("dask.array")
    whole = adata.copy()
    with distributed.Client(processes=False, dashboard_address=None, n_workers=1):
        adata.X = array.from_array(adata.X, chunks=(9, M), asarray=False).persist()
        fit(adata)
    fit(whole)
    # sums over cells are made task by task
    np.testing.assert_allclose(adata.obsm["X_lfm"], whole.obsm["X_lfm"], atol=1e-6)


def test_few_dask_chunks_are_kept_and_each_is_computed_once(adata):
    array = pytest.importorskip("dask.array")
    computed = []

    def note(block, block_info=None):
        computed.append(block_info[0]["chunk-location"][0])
        return block

    dense = adata.X.toarray()
    x = array.from_array(dense, chunks=(5, M)).map_blocks(note, meta=np.empty((0, 0), np.float32))
    source = source_of(x, "X")
    for start in range(0, N, 2):
        np.testing.assert_array_equal(source.rows(slice(start, start + 2)), dense[start : start + 2])
    assert computed == list(range(N // 5))
    assert len(source._chunks._entries) == 3
