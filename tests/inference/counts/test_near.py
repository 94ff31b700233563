"""Variances of low rank within a fit: it ends where exact ones end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from log_rate_means import eta
from scvi_lfm.posterior import rates


@pytest.fixture
def asked(monkeypatch):
    """Ranks that variances are taken for, in the order of steps."""
    ranks, whole = [], rates.cross_approximation

    def spy(left, right, rank):
        ranks.append(rank)
        return whole(left, right, rank)

    monkeypatch.setattr(rates, "cross_approximation", spy)
    return ranks


def simulated(seed=0):
    """More latents and genes than exact variances are taken for."""
    return lfm.datasets.simulate(400, 1500, 6, likelihood="negative_binomial", mu=-0.5, rng=seed)


def fitted(adata, **options):
    adata = adata.copy()
    lfm.tl.fit(adata, 8, batch_size=150, progress=False, **options)
    return adata


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "negative_binomial"},
        pytest.param({"likelihood": "poisson"}, marks=pytest.mark.slow),
        pytest.param({"likelihood": "negative_binomial", "observed": "stored"}, marks=pytest.mark.slow),
        pytest.param({"likelihood": "negative_binomial", "family": "mean_field"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_a_fit_ends_where_exact_variances_end(asked, monkeypatch, options):
    """Over ten draws bounds differ by at most 8e-5 of the gain, eta by 2e-3 of its sd; of all entries 6e-6 and 2e-4."""
    adata = simulated()
    found = fitted(adata, **options)
    assert set(asked) == {18}
    asked.clear()
    monkeypatch.setattr(rates, "WORTHWHILE", 0.0)
    exact = fitted(adata, **options)
    assert asked == []
    bounds = [np.asarray(one.uns["lfm"]["elbo"]["value"])[-1] for one in (found, exact)]
    slack = 10 if "observed" in options else 1
    assert abs(bounds[0] - bounds[1]) < slack * 5e-5 * (bounds[1] - exact.uns["lfm"]["elbo"]["rank0"])
    assert np.sqrt(np.square(eta(found) - eta(exact)).mean()) < slack * 1e-3 * eta(exact).std()


def test_threads_change_no_bit(asked):
    """Genes are shared among threads, rows of cells and genes that tell the rank are not."""
    adata, before, found = simulated(), torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append(fitted(adata, likelihood="negative_binomial"))
    finally:
        torch.set_num_threads(before)
    assert len(asked) > 3
    for key in ("X_lfm", "lfm_cov"):
        np.testing.assert_array_equal(found[0].obsm[key], found[1].obsm[key])
        np.testing.assert_array_equal(found[0].obsm[key], found[2].obsm[key])
