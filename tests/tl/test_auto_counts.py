"""`n_factors="auto"` on counts whose size factors are their totals, which depend on the factors of a cell."""

from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm.inference.counts import objective
from scvi_lfm.tl import _fit_checks

# of many molecules a cell, so that totals hold much of the factors
LEVELS = {"negative_binomial": -0.5, "poisson": 0.5}


def auto(adata, likelihood):
    lfm.tl.fit(adata, "auto", likelihood=likelihood, progress=False)
    return adata.obsm["X_lfm"].shape[1]


@pytest.mark.parametrize(
    ("scales", "seed"), [([0.5, 0.4, 0.3], 0), pytest.param([0.5, 0.4, 0.3], 1, marks=pytest.mark.slow), ([], 0)]
)
def test_totals_bring_no_factor_of_their_own(monkeypatch, scales, seed):
    monkeypatch.setattr(objective, "ENTRIES", 20_000)
    monkeypatch.setattr(_fit_checks, "MOST_FACTORS_OF_COUNTS", 8)
    drawn = scales or [0.0]
    adata = lfm.datasets.simulate(
        200, 100, len(drawn), likelihood="poisson", mu=LEVELS["poisson"], factor_scales=drawn, rng=seed
    )
    assert auto(adata, "poisson") == len(scales)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(adata.obs["lfm_size_factor"], totals / totals.mean(), rtol=1e-6)


def test_a_factor_weaker_than_what_totals_hold_is_kept(monkeypatch):
    """Here the activity, as a factor, is stronger than the last two; by their size alone one of these would go."""
    monkeypatch.setattr(objective, "ENTRIES", 20_000)
    monkeypatch.setattr(_fit_checks, "MOST_FACTORS_OF_COUNTS", 8)
    adata = lfm.datasets.simulate(
        300, 150, 4, likelihood="poisson", mu=LEVELS["poisson"], factor_scales=[0.6, 0.5, 0.15, 0.12], rng=0
    )
    assert auto(adata, "poisson") == 4


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", LEVELS)
@pytest.mark.parametrize("n_factors", [4, 0])
def test_finds_the_number_with_size_factors_from_totals(likelihood, n_factors):
    scales = {} if n_factors else {"factor_scales": [0.0]}
    found = [
        auto(
            lfm.datasets.simulate(
                800, 300, max(n_factors, 1), likelihood=likelihood, mu=LEVELS[likelihood], rng=seed, **scales
            ),
            likelihood,
        )
        for seed in range(6)
    ]
    assert sum(number == n_factors for number in found) >= 5
