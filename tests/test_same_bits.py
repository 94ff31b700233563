"""A result has the same bits for any number of threads: blocks depend on the data alone, sums go by their order."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm

N, M = 2100, 24
FITS = {
    "normal": {},
    "normal, minibatches": {"batch_size": 1050, "max_epochs": 2},
    "normal, noise of cells": {"noise": "cell_gene"},
    "normal, auto": {"n_factors": "auto"},
    "stored entries": {"observed": "stored"},
    "stored entries, minibatches": {"observed": "stored", "batch_size": 1050, "max_epochs": 2},
    "stored entries, auto": {"observed": "stored", "n_factors": "auto", "batch_size": N},
}

QUICK = {"normal", "normal, minibatches", "stored entries", "stored entries, auto"}


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def values():
    adata = lfm.datasets.simulate(N, M, 3, rng=1)
    rng = np.random.default_rng(2)
    adata.X = sp.csr_matrix(np.where(rng.random((N, M)) < 0.4, adata.X, 0).astype(np.float32))
    return adata


def arrays_of(adata):
    """Every number that a fit has stored."""
    found = {}
    for place in ("obsm", "varm"):
        table = getattr(adata, place)
        found |= {f"{place}/{name}": np.asarray(table[name]) for name in table}
    for place in ("obs", "var"):
        table = getattr(adata, place)
        found |= {f"{place}/{name}": table[name].to_numpy() for name in table if name.startswith("lfm")}
    found["elbo"] = adata.uns["lfm"]["elbo"]["value"]
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FITS]
)
def test_fits(values, name):
    options = {"n_factors": 3, "max_epochs": 4, "progress": False, "copy": True, **FITS[name]}
    found = []
    for number in (1, 4):
        with threads(number):
            found.append(arrays_of(lfm.tl.fit(values, **options)))
    same(*found)


@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize("observed", ["all", "stored"])
def test_new_cells(values, observed):
    reference = lfm.tl.fit(values[:600].copy(), 3, observed=observed, max_epochs=3, progress=False, copy=True)
    found = []
    for number in (1, 2, 4):
        new = values.copy()
        with threads(number):
            lfm.tl.project(new, reference)
        found.append(arrays_of(new))
    same(found[0], found[1])
    same(found[0], found[2])
