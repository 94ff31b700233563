"""Tools that look at every entry: the same bits for any number of threads, and few readings of the data."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from readings import readings
from scvi_lfm._workers import with_workers
from scvi_lfm.data import HeldOut
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.held_out import score_held_out

KINDS = {
    "normal": {},
    "normal by cell": {"noise": "cell_gene"},
    "normal, some held out": {"held_out": "test"},
    "negative_binomial": {"likelihood": "negative_binomial"},
    "poisson": {"likelihood": "poisson"},
    "bernoulli": {"likelihood": "bernoulli"},
    "ordinal": {"likelihood": "ordinal", "observed": "stored"},
}


def anomalies(adata):
    lfm.tl.anomalies(adata, by="either", fdr=0.9)
    return adata.obs["lfm_anomaly"], adata.var["lfm_anomaly"], lfm.get.anomalies_df(adata)


def check(adata):
    report = lfm.tl.check(adata, refit=False)
    return report.calibration, report.histogram, report.leftover


def predict(adata):
    lfm.tl.predict(adata, layer_added="expected")
    return (adata.layers["expected"],)


def recommend(adata):
    if not sp.issparse(adata.X):
        adata.layers["seen"] = sp.csr_matrix(adata.X > 0, dtype=np.float32)
        with pytest.warns(UserWarning, match="not what the fit read"):
            return (lfm.tl.recommend(adata, n_top=3, layer="seen"),)
    return lfm.tl.recommend(adata, n_top=3), lfm.tl.recommend(adata, n_top=3, order="upper")


TOOLS = {tool.__name__: tool for tool in (anomalies, check, predict, recommend)}


def equal(one, other):
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def with_threads():
    before = torch.get_num_threads()

    def run(function, n, *arguments):
        torch.set_num_threads(n)
        return function(*arguments)

    yield run
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.half_slow
def test_threads_change_no_bit(fit_of, with_threads, monkeypatch, tool, kind):
    options = dict(KINDS[kind])
    adata = fit_of(options.pop("likelihood", "normal"), **options)
    # many blocks
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 3 * adata.n_vars)
    monkeypatch.setattr("scvi_lfm.posterior.anomalies.other_cells.CELLS_PER_BLOCK", 7)
    monkeypatch.setattr("scvi_lfm.posterior.leave_many_out.VALUES_PER_BLOCK", 60)
    one, two, four = (with_threads(TOOLS[tool], n, adata.copy()) for n in (1, 2, 4))
    for first, *others in zip(one, two, four, strict=True):
        for other in others:
            equal(first, other)


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial", "ordinal"])
def test_scores_of_held_out_entries_do_not_depend_on_threads(fit_of, with_threads, monkeypatch, likelihood):
    adata = fit_of(likelihood, observed="stored")
    cell, gene = np.nonzero(np.indices(adata.shape).sum(0) % 6 == 1)
    q, held_out = read_fit(adata, "lfm").posterior, HeldOut(cell, gene, (cell % 3).astype(float))
    score = with_workers(lambda: score_held_out(q, held_out).means)
    whole = score()
    monkeypatch.setattr("scvi_lfm.posterior.held_out.CELLS_PER_BLOCK", 7)
    one, two, four = (with_threads(score, n) for n in (1, 2, 4))
    assert one == two == four
    np.testing.assert_allclose(one, whole, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tool", "number"),
    [
        (functools.partial(lfm.tl.anomalies, by="either"), 3),
        (functools.partial(lfm.tl.check, refit=False), 3),
        (functools.partial(lfm.tl.predict, layer_added="expected"), 0),
    ],
    ids=["anomalies", "check", "predict"],
)
@pytest.mark.half_slow
def test_readings(fit_of, monkeypatch, tool, number, kind):
    """One checks the values; what is held out is set aside by another, and the totals of the rest are a third."""
    options = dict(KINDS[kind])
    adata = fit_of(options.pop("likelihood", "normal"), **options)
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 3 * adata.n_vars)
    if number and "held_out" in options:
        number += 2 if tool.func is lfm.tl.check else 1
    assert readings(tool, adata, monkeypatch) == number


@pytest.mark.parametrize("by", ["lfdr", "q", "either"])
@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
@pytest.mark.parametrize("most", [1, 5])
@pytest.mark.half_slow
def test_what_is_held_until_the_end_is_what_is_listed(fit_of, monkeypatch, likelihood, by, most):
    """In one block nothing is let go before all distances are known."""
    adata = fit_of(likelihood)
    adata.X = adata.to_df().to_numpy()
    adata.X[np.arange(0, 40, 4), np.arange(10)] += 2 * adata.X.max()
    everything = lfm.get.anomalies_df(lfm.tl.anomalies(adata, by=by, fdr=0.9, copy=True))
    assert len(everything) > 2 * most
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 2 * adata.n_vars)
    some = lfm.get.anomalies_df(lfm.tl.anomalies(adata, by=by, fdr=0.9, max_entries=most, copy=True))
    pd.testing.assert_frame_equal(some, everything.head(most), rtol=1e-4)
