"""Sources of values: what every test of a source, and of what reads one, is run with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scvi_lfm.data import CellSource, MemorySource
from scvi_lfm.data.opening import source_of as source_of_array
from scvi_lfm.data.selected import Selected


@dataclass(frozen=True, eq=False)
class RowsAlone(CellSource):
    """A source that answers what it must and no more, as one on disk would: whatever else is asked follows."""

    held: MemorySource

    @property
    def shape(self):
        return self.held.shape

    @property
    def dtype(self):
        return self.held.dtype

    @property
    def is_sparse(self):
        return self.held.is_sparse

    @property
    def n_stored(self):
        return self.held.n_stored

    @property
    def place(self):
        return "file"

    def rows(self, which):
        return self.held.rows(which).copy()

    def at_genes(self, genes):
        return RowsAlone(self.held.at_genes(genes))

    def without(self, mask):
        return RowsAlone(self.held.without(mask))


def alone(values):
    return RowsAlone(MemorySource(values))


def in_hdf5(values, path):
    file = h5py.File(path / f"{len(list(path.iterdir()))}.h5", "w")
    return opened(file, values, compression="gzip", chunks=(2,) * (1 if sp.issparse(values) else 2))


def in_zarr(values, path):
    import zarr

    return opened(zarr.open_group(path / f"{len(list(path.iterdir()))}.zarr", zarr_format=3), values)


def opened(file, values, **options):
    small = 0 in (values.data if sp.issparse(values) else values).shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's, of its own format
        ad.io.write_elem(file, "X", values, dataset_kwargs={} if small else options)
    return source_of_array(ad.io.sparse_dataset(file["X"]) if sp.issparse(values) else file["X"], "X")


def in_dask(values, _):
    array = pytest.importorskip("dask.array").from_array(values, chunks=(4, values.shape[1]), asarray=False)
    return source_of_array(array, "X")


def selected(values, _):
    """A part of a larger source, its cells and genes in another order."""
    n, m = values.shape
    cells, genes = np.random.default_rng(0).permutation(n), np.random.default_rng(1).permutation(m)
    more = sp.csr_array if sp.issparse(values) else np.asarray
    stack = (sp.vstack, sp.hstack) if sp.issparse(values) else (np.vstack, np.hstack)
    larger = stack[1]([stack[0]([values[cells], values[cells[:1]]]).astype(values.dtype)[:, genes]] * 2)
    return Selected(MemorySource(more(larger)), np.argsort(cells), np.argsort(genes))


SOURCES = {
    "memory": lambda values, _: MemorySource(values),
    "rows alone": lambda values, _: alone(values),
    "HDF5": in_hdf5,
    "zarr": in_zarr,
    "dask": in_dask,
    "selected": selected,
}
FORMS = {
    "dense": np.asarray,
    "by columns": np.asfortranarray,
    "float64": lambda values: values.astype(np.float64),
    "sparse": sp.csr_array,
}


@pytest.fixture(params=SOURCES)
def source_of(request, tmp_path):
    """A source, of each kind there is, of an array."""
    return lambda values: SOURCES[request.param](values, tmp_path)


@pytest.fixture
def rows_alone():
    """A source, of the least kind, of an array."""
    return alone


@pytest.fixture(params=FORMS)
def form(request):
    """An array as sources hold it, of a dense one."""
    return FORMS[request.param]


@pytest.fixture(params=[7, 2**17], ids=["parts", "one part"])
def parts(request, monkeypatch):
    """Sources are read in parts of a few values, and at once."""
    monkeypatch.setattr("scvi_lfm.data.source.VALUES_PER_PART", request.param)
