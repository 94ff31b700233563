"""What plots say of a fit to counts, and how they draw it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm


@pytest.fixture(scope="module")
def fitted_counts():
    adata = lfm.datasets.simulate(90, 40, 3, likelihood="negative_binomial")
    lfm.tl.fit(adata, 3, progress=False)
    lfm.tl.rank_genes(adata, mask_obs=adata.obsm["A"][:, 0] > 0)
    lfm.tl.anomalies(adata)
    return adata


@pytest.fixture
def counts(fitted_counts):
    """With a table of entries, one of them a zero."""
    adata = fitted_counts.copy()
    adata.uns["lfm_anomaly"]["entries"] = pd.DataFrame(
        {
            "cell": adata.obs_names[:4],
            "gene": adata.var_names[:4],
            "y": [30.0, 7.0, 2.0, 0.0],
            "expected": [0.01, 0.5, 0.001, 12.0],
            "p": 0.0,
            "q": 0.0,
            "log_ratio": [9.0, 8.0, 7.0, 6.0],
            "lfdr": 0.0,
            "direction": ["up", "up", "up", "down"],
        }
    )
    return adata


@pytest.mark.parametrize(("direction", "scale"), [("up", "log"), (None, "symlog")])
def test_anomalous_counts_are_drawn_on_logarithmic_axes(counts, direction, scale):
    axes = lfm.pl.anomalies(counts, direction=direction, show=False)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", scale)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("expected count", "observed count")
    table = lfm.get.anomalies_df(counts, direction=direction).iloc[::-1]
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), table[["expected", "y"]])
    axes.figure.draw_without_rendering()
    assert {"1", "2", "5", "10", "20"} <= {label.get_text() for label in axes.get_yticklabels()}


def test_labels_say_log_rates_and_shares_of_the_factors(counts):
    assert lfm.pl.variance(counts, show=False).get_ylabel() == "share of the factors' variance (%)"
    assert lfm.pl.factors(counts, show=False).get_xlabel().endswith("% of factors' variance)")
    (axes,) = lfm.pl.rank_genes(counts, show=False)
    assert axes.get_xlabel().startswith("score: difference in log rate\n")
    lfm.pl.loadings(counts, show=False)
    lfm.pl.elbo(counts, show=False)


def test_tables_outlive_their_fit(counts):
    del counts.uns["lfm"]
    assert lfm.pl.anomalies(counts, show=False).get_xlabel() == "expected value"
    assert "expected expression" in lfm.pl.rank_genes(counts, show=False)[0].get_xlabel()
