"""Fits of counts in which many genes, or cells, were never seen: they end, and at what they say they end at."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import scvi_lfm as lfm

N, M, R = 150, 400, 3


@pytest.fixture(scope="module")
def counts():
    return lfm.datasets.simulate(N, M, R, likelihood="negative_binomial", mu=-0.5, rng=0)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
@pytest.mark.parametrize("unseen", ["genes", "cells"])
def test_a_fit_to_counts_of_which_most_rows_are_zero_converges(counts, unseen, likelihood):
    """A wide q makes rates large, and these q narrow: in full steps variances swing for ever, between 0.3 and 6."""
    adata = counts.copy()
    values = adata.X.toarray()
    if unseen == "genes":
        values[:, ::2] = 0
    else:
        values[np.arange(N) % 10 < 7] = 0
    adata.X = values
    adata.obs["size"] = 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* are all zero")
        lfm.tl.fit(adata, R, likelihood=likelihood, size_factors="size", max_epochs=30, progress=False)
    fit = adata.uns["lfm"]
    assert fit["converged"]
    # the last is that of what is stored
    assert (np.diff(fit["elbo"]["value"]) > -1e-3).all()
    assert fit["elbo"]["value"][-1] > fit["elbo"]["rank0"]
