"""Tools need no more of a source than it must answer: from one that gives rows alone they return the same bits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm

CASES = {
    "counts normalised": {"normalize": 1e4, "batch_size": 32, "held_out": "test"},
    "values": {"likelihood": "normal"},
    "minibatches": {"likelihood": "normal", "batch_size": 32, "held_out": "test"},
    "counts": {"likelihood": "negative_binomial", "batch_size": 32},
    "counts held out": {"likelihood": "poisson", "held_out": "test"},
    "ratings": {"likelihood": "normal", "observed": "stored", "held_out": "test"},
    "ratings in minibatches": {"likelihood": "normal", "observed": "stored", "batch_size": 32},
}


def data(likelihood="poisson", observed="all", **_):
    adata = lfm.datasets.simulate(90, 24, 2, likelihood=likelihood, mu=0.5)
    rng = np.random.default_rng(4)
    if observed == "stored":
        adata.X = sp.csr_matrix(np.where(rng.random(adata.shape) < 0.5, adata.X, 0))
    adata.layers["test"] = sp.csr_matrix(rng.random(adata.shape) < 0.05)
    return adata


def results(options):
    """What the tools that read values make of some data."""
    adata = data(**options)
    lfm.tl.fit(adata, 2, max_epochs=4, progress=False, **options)
    lfm.tl.anomalies(adata)
    found = {"anomalies": lfm.get.anomalies_df(adata), "check": lfm.tl.check(adata, refit=False).calibration}
    new = data(**options)[:40].copy()
    lfm.tl.project(new, adata)
    if sp.issparse(adata.X):
        found["recommend"] = lfm.tl.recommend(adata, n_top=3)
    for name, one in (("fit", adata), ("new", new)):
        found |= {f"{name}.obs": one.obs, f"{name}.var": one.var, f"{name}.obsm": pd.DataFrame(one.obsm["X_lfm"])}
    return found


@pytest.mark.half_slow
@pytest.mark.filterwarnings("ignore:The fit did not converge:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_tools_read_rows_alone(case, rows_alone, monkeypatch):
    expected = results(CASES[case])
    read = []
    monkeypatch.setattr("scvi_lfm.data.gate.MemorySource", lambda values: read.append(rows_alone(values)) or read[-1])
    found = results(CASES[case])
    assert len(read) > 1
    assert list(found) == list(expected)
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)
