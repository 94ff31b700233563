"""Sources of values: what every test of a source, and of what reads one, is run with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_lfm.data import CellSource, MemorySource


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

    def rows(self, which):
        return self.held.rows(which).copy()

    def at_genes(self, genes):
        return RowsAlone(self.held.at_genes(genes))

    def without(self, mask):
        return RowsAlone(self.held.without(mask))


def alone(values):
    return RowsAlone(MemorySource(values))


SOURCES = {"memory": MemorySource, "rows alone": alone}
FORMS = {
    "dense": np.asarray,
    "by columns": np.asfortranarray,
    "float64": lambda values: values.astype(np.float64),
    "sparse": sp.csr_array,
}


@pytest.fixture(params=SOURCES)
def source_of(request):
    """A source, of each kind there is, of an array."""
    return SOURCES[request.param]


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
