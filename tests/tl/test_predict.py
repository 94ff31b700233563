from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import scvi_lfm as lfm
from scvi_lfm.tl import _predict

CELLS, GENES = ["cell_7", "cell_100", "cell_0"], ["gene_50", "gene_3"]


def brute_force(fields, eta_moments):
    """Mean and variance of every eta, under the predictive noise."""
    return eta_moments(fields.mu, fields.cells, fields.cell_cov, fields.genes, fields.gene_covs(fields.noise))


def test_mean_sd_and_quantiles_follow_the_formula(fitted, read_fields, eta_moments):
    fields = read_fields(fitted)
    mean, var = brute_force(fields, eta_moments)
    result = lfm.tl.predict(fitted, obs_names=CELLS, var_names=GENES, quantiles=(0.025, 0.5, 0.9))
    assert result["cell"].tolist() == np.repeat(CELLS, 2).tolist()
    assert result["gene"].tolist() == GENES * 3
    rows, columns = fitted.obs_names.get_indexer(result["cell"]), fitted.var_names.get_indexer(result["gene"])
    mean, var = mean[rows, columns], var[rows, columns]
    predictive_sd = np.sqrt(var + fields.noise[columns] ** 2)
    np.testing.assert_allclose(result["expected"], mean, rtol=1e-10)
    np.testing.assert_allclose(result["sd"], np.sqrt(var), rtol=1e-6)
    np.testing.assert_allclose(result["predictive_sd"], predictive_sd, rtol=1e-6)
    for level in (0.025, 0.5, 0.9):
        np.testing.assert_allclose(result[f"q{level:g}"], mean + norm.ppf(level) * predictive_sd, rtol=1e-6, atol=1e-9)


def test_pairs_are_the_matching_rows_of_the_product(fitted):
    product = lfm.tl.predict(fitted, obs_names=CELLS[:2], var_names=GENES)
    pairs = lfm.tl.predict(fitted, obs_names=CELLS[:2], var_names=GENES, pairs=True)
    assert pairs.shape == (2, 7)
    # one sums over latents entry by entry, the other by a product of matrices
    pd.testing.assert_frame_equal(pairs, product.iloc[[0, 3]].reset_index(drop=True), rtol=1e-12)


def test_one_name_and_the_default_quantiles(fitted):
    result = lfm.tl.predict(fitted, obs_names="cell_7", var_names="gene_3")
    assert result.columns.tolist() == ["cell", "gene", "expected", "sd", "predictive_sd", "q0.05", "q0.95"]
    assert len(lfm.tl.predict(fitted, obs_names="cell_7", var_names="gene_3", quantiles=[]).columns) == 5


def test_layer_holds_what_the_table_says(fitted, monkeypatch):
    adata = fitted.copy()
    assert lfm.tl.predict(adata, layer_added="eta") is None
    table = lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names))
    assert adata.layers["eta"].dtype == np.float32
    np.testing.assert_allclose(adata.layers["eta"].ravel(), table["expected"], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 64 * adata.n_vars)
    lfm.tl.predict(adata, layer_added="in blocks")
    np.testing.assert_allclose(adata.layers["in blocks"], adata.layers["eta"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("likelihood", "kept"), [("normal", True), ("poisson", True), ("poisson", False)])
def test_layer_beside_a_dask_array_is_one_too(likelihood, kept, monkeypatch):
    """However much it would take, and without a value being read."""
    da = pytest.importorskip("dask.array")
    adata = lfm.datasets.simulate(90, 30, 2, likelihood=likelihood)
    if not kept:
        monkeypatch.setattr(lfm.settings, "max_cov_bytes", 0)
    lfm.tl.fit(adata, 2, likelihood=likelihood, mask_var=np.arange(30) != 5, progress=False)
    lazy = adata.copy()
    lazy.X = da.from_array(adata.X, chunks=(37, 11), asarray=False).map_blocks(unreadable, meta=adata.X[:0])
    lfm.tl.predict(adata, layer_added="expected")
    monkeypatch.setattr(_predict, "MAX_LAYER_BYTES", 0)
    lfm.tl.predict(lazy, layer_added="expected")
    layer = lazy.layers["expected"]
    assert isinstance(layer, da.Array)
    assert layer.chunks == ((37, 37, 16), (30,))
    assert layer.dtype == adata.layers["expected"].dtype
    np.testing.assert_allclose(layer.compute(scheduler="threads"), adata.layers["expected"], rtol=1e-6)
    np.testing.assert_allclose(layer[40:42].compute(), adata.layers["expected"][40:42], rtol=1e-6)


def unreadable(block):
    raise OSError


def test_lazy_layer_is_written_chunk_by_chunk(fitted, tmp_path):
    da = pytest.importorskip("dask.array")
    lazy = fitted.copy()
    lazy.X = da.from_array(fitted.X, chunks=(40, -1), asarray=False)
    lfm.tl.predict(lazy, layer_added="eta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy.write_zarr(tmp_path / "cells.zarr")
        found = ad.read_zarr(tmp_path / "cells.zarr")
    expected = fitted.copy()
    lfm.tl.predict(expected, layer_added="eta")
    np.testing.assert_allclose(found.layers["eta"], expected.layers["eta"], rtol=1e-6, atol=1e-6)


def test_genes_that_were_not_fitted_are_missing_from_the_layer(fitted):
    adata = fitted[:, :40].copy()
    lfm.tl.fit(adata, 2, mask_var=np.arange(40) != 5, progress=False)
    lfm.tl.predict(adata, layer_added="eta")
    assert np.isnan(adata.layers["eta"][:, 5]).all()
    assert np.isfinite(np.delete(adata.layers["eta"], 5, axis=1)).all()


def test_a_layer_above_one_gib_is_refused(fitted, monkeypatch):
    monkeypatch.setattr(_predict, "MAX_LAYER_BYTES", 150 * 80 * 4 - 1)
    adata = fitted.copy()
    with pytest.raises(ValueError, match=r"The layer would take 0\.0 GiB, more than 1 GiB\..*obs_names=.*dask array"):
        lfm.tl.predict(adata, layer_added="eta")
    assert "eta" not in adata.layers
    monkeypatch.setattr(_predict, "MAX_ROWS", 5)
    with pytest.raises(ValueError, match="3 cells x 2 genes make 6 rows, more than 5"):
        lfm.tl.predict(adata, obs_names=CELLS, var_names=GENES)
    assert len(lfm.tl.predict(adata, obs_names=CELLS, var_names=GENES * 1 + GENES[:1], pairs=True)) == 3


def test_intervals_cover_the_true_eta_and_new_values(true_eta):
    eta_inside, value_inside = [], []
    for seed in range(4):
        sigma = np.random.default_rng(seed).permutation(np.geomspace(0.5, 2, 200))
        adata = lfm.datasets.simulate(300, 200, 4, sigma=sigma, rng=seed)
        lfm.tl.fit(adata, 4, progress=False)
        result = lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names))
        truth = true_eta(adata)
        new = (truth + sigma * np.random.default_rng(seed + 100).standard_normal(truth.shape)).ravel()
        error = np.abs(result["expected"] - truth.ravel())
        eta_inside.append((error < norm.ppf(0.95) * result["sd"]).to_numpy().reshape(truth.shape))
        value_inside.append(((new > result["q0.05"]) & (new < result["q0.95"])).to_numpy().reshape(truth.shape))
        for inside in (eta_inside, value_inside):
            inside[-1] = [inside[-1][:, sigma < 0.8].mean(), inside[-1][:, sigma > 1.25].mean()]
    # measured, for quiet and noisy genes: 0.894 and 0.897 of eta, 0.921 and 0.894 of new values
    assert ((np.mean(eta_inside, axis=0) > 0.85) & (np.mean(eta_inside, axis=0) < 0.92)).all()
    assert ((np.mean(value_inside, axis=0) > 0.87) & (np.mean(value_inside, axis=0) < 0.94)).all()
