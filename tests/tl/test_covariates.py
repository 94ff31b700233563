"""`tl.fit(covariates=...)` and every tool on such a fit."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from batches import accuracy, auc, linear_auc, two_batches

LIKELIHOODS = ["normal", "negative_binomial"]


@pytest.fixture(scope="module", params=["normal", pytest.param("negative_binomial", marks=pytest.mark.slow)])
def both(request):
    """Two batches fitted with the batch and a number; the batch-free simulation, not fitted. Copy before writing."""
    shifted, free = two_batches(800, 250, request.param, seed=0)
    shifted.obs["pct"] = np.random.default_rng(1).standard_normal(800)
    lfm.tl.fit(shifted, 6, likelihood=request.param, covariates=["batch", "pct"], progress=False)
    return shifted, free


@pytest.mark.parametrize("both", ["normal", pytest.param("negative_binomial", marks=pytest.mark.slow)], indirect=True)
def test_the_batch_cannot_be_told_beyond_the_types(both):
    shifted, free = both[0], both[1].copy()
    lfm.tl.fit(free, 6, likelihood=shifted.uns["lfm"]["params"]["likelihood"], progress=False)
    second, kind = (shifted.obs["batch"] == "two").to_numpy(), shifted.obs["type"].to_numpy()
    limit = auc(pd.get_dummies(kind).to_numpy(), second, n_trees=40)
    for found, of_types in zip(auc(shifted.obsm["X_lfm"], second, n_trees=40), limit, strict=True):
        assert abs(found - of_types) < 0.05
    assert accuracy(shifted.obsm["X_lfm"], kind) > accuracy(free.obsm["X_lfm"], kind) - 0.01


@pytest.mark.parametrize("both", ["normal", pytest.param("negative_binomial", marks=pytest.mark.slow)], indirect=True)
def test_without_the_covariate_it_can(both):
    shifted = both[0].copy()
    lfm.tl.fit(shifted, 6, likelihood=shifted.uns["lfm"]["params"]["likelihood"], progress=False)
    assert "lfm_beta" not in shifted.varm
    assert linear_auc(shifted.obsm["X_lfm"], (shifted.obs["batch"] == "two").to_numpy()) > 0.95


def test_shapes_and_coding(both):
    shifted = both[0]
    assert shifted.varm["lfm_beta"].shape == shifted.varm["lfm_beta_sd"].shape == (250, 2)
    assert shifted.uns["lfm"]["covariates"]["column"].tolist() == ["batch", "pct"]
    assert shifted.uns["lfm"]["covariates"]["level"].tolist() == ["two", ""]
    # the second covariate is noise
    assert shifted.varm["lfm_beta"][:, 1].std() < 0.1 * shifted.varm["lfm_beta"][:, 0].std()


@pytest.mark.parametrize("batch_size", [None, 100])
@pytest.mark.parametrize("family", ["row_block", "mean_field"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.half_slow
def test_coefficients_are_recovered_with_their_uncertainty(likelihood, family, batch_size):
    data = lfm.datasets.simulate(400, 80, 2, likelihood=likelihood, mu=0.5)
    rng = np.random.default_rng(2)  # another than the simulation's, whose draws would come again
    x, beta = rng.normal(5, 3, 400), 0.4 * rng.standard_normal(80)
    eta = (
        data.uns["mu"]
        + data.obs["a"].to_numpy()[:, None]
        + data.var["b"].to_numpy()
        + data.obsm["A"] @ data.varm["B"].T
    )
    eta = eta + np.outer((x - x.mean()) / x.std(), beta)
    if likelihood == "normal":
        data.X = (eta + rng.standard_normal(eta.shape)).astype(np.float32)
    else:
        data.X = rng.poisson(np.exp(eta) * rng.gamma(5, 1 / 5, eta.shape)).astype(np.float32)
    data.obs["x"] = x
    lfm.tl.fit(
        data,
        4,
        likelihood=likelihood,
        covariates="x",
        family=family,
        batch_size=batch_size,
        tol=2e-3,
        max_epochs=40,
        size_factors=None if likelihood == "normal" else np.ones(400),
        progress=False,
    )
    found, sd = data.varm["lfm_beta"][:, 0], data.varm["lfm_beta_sd"][:, 0]
    # cells are of no kind here: the covariate may trade with activity and factors by what chance gives
    assert np.corrcoef(found, beta)[0, 1] > 0.97
    assert np.sqrt(((found - beta) ** 2).mean()) < 0.15
    assert (sd > 0).all()


def test_projecting_the_cells_of_the_fit_gives_the_fit(both):
    shifted = both[0]
    new = shifted[100:200].copy()
    lfm.tl.project(new, shifted, key_added="new")
    exact = shifted.uns["lfm"]["params"]["likelihood"] == "normal"
    np.testing.assert_allclose(new.obsm["X_new"], shifted.obsm["X_lfm"][100:200], atol=1e-5 if exact else 0.02)


def test_predictions_are_the_formula_and_survive_files_and_slices(both, tmp_path):
    shifted = both[0]
    shifted.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    cells, genes = list(shifted.obs_names[[3, 500]]), list(shifted.var_names[[0, 7]])
    table = lfm.tl.predict(shifted, obs_names=cells, var_names=genes)
    for other in (again, again[[3, 500]].copy()):
        pd.testing.assert_frame_equal(lfm.tl.predict(other, obs_names=cells, var_names=genes), table)
    if shifted.uns["lfm"]["params"]["likelihood"] == "normal":
        z = np.column_stack([shifted.obs["batch"] == "two", shifted.obs["pct"]]).astype(float)
        z = z - z.mean(0)
        z[:, 1] /= z[:, 1].std()
        eta = shifted.uns["lfm"]["mu"] + shifted.obs["lfm_a"].to_numpy()[:, None] + shifted.var["lfm_b"].to_numpy()
        eta = eta + shifted.obsm["X_lfm"] @ shifted.varm["lfm"].T + z @ shifted.varm["lfm_beta"].T
        np.testing.assert_allclose(table["expected"], eta[np.ix_([3, 500], [0, 7])].ravel(), atol=1e-4)


def test_every_tool_takes_such_a_fit(both):
    shifted = both[0].copy()
    lfm.tl.rank_genes(shifted, "type")
    lfm.tl.rank_cells(shifted, shifted.var_names[:2].tolist())
    lfm.tl.anomalies(shifted)
    lfm.tl.check(shifted, refit=False)
    assert len(lfm.tl.similar_genes(shifted, shifted.var_names[0], n_top=3)) == 3
    drawn = lfm.tl.sample_posterior(shifted, 300)
    assert drawn["beta"].shape == (300, 250, 2)
    assert drawn["A"].shape[2] == 6
    error = np.abs(drawn["beta"].mean(0) - shifted.varm["lfm_beta"]) / shifted.varm["lfm_beta_sd"]
    assert error.max() < 6 / np.sqrt(300)


def test_what_the_covariate_explains_ranks_no_gene(both):
    shifted = both[0].copy()
    lfm.tl.rank_genes(shifted, "batch", groups=["two"], reference="one")
    scores = lfm.get.rank_genes_df(shifted).set_index("names")["scores"].loc[shifted.var_names].to_numpy()
    assert abs(np.corrcoef(scores, shifted.varm["lfm_beta"][:, 0])[0, 1]) < 0.3


def test_covariances_that_are_not_stored_are_computed_anew(monkeypatch):
    shifted, _ = two_batches(300, 100, "negative_binomial", seed=0)
    kept = lfm.tl.fit(shifted, 3, covariates="batch", progress=False, copy=True)
    del kept.obsm["lfm_cov"]
    lfm.tl.fit(shifted, 3, covariates="batch", progress=False)
    wanted = {"obs_names": list(kept.obs_names[:9]), "var_names": list(kept.var_names[:9])}
    np.testing.assert_allclose(lfm.tl.predict(kept, **wanted)["sd"], lfm.tl.predict(shifted, **wanted)["sd"], rtol=0.02)


def test_bad_input_leaves_the_data_alone(both):
    shifted = both[0]
    new, before = shifted.copy(), set(shifted.uns)
    with pytest.raises(KeyError, match="Did you mean 'batch'"):
        lfm.tl.fit(new, 2, covariates=["bacth"], key_added="other")
    with pytest.raises(ValueError, match="engine='natural_gradient'"):
        lfm.tl.fit(new, 2, covariates=["batch"], engine="pyro", key_added="other")
    with pytest.raises(ValueError, match="noise='shared' or noise='gene', found noise='cell_gene'"):
        lfm.tl.fit(new, 2, likelihood="normal", covariates=["batch"], noise="cell_gene", key_added="other")
    with pytest.raises(KeyError, match="no column 'batch'"):
        lfm.tl.project(ad.AnnData(new.X, var=new.var[[]]), shifted, size_factors=_sizes(new))
    new.obs["batch"] = "three"
    with pytest.raises(ValueError, match="holds 'three' in 800 cell"):
        lfm.tl.project(new, shifted, key_added="other")
    assert set(new.uns) == before


def _sizes(adata):
    return None if "lfm_size_factor" not in adata.obs else adata.obs["lfm_size_factor"].to_numpy()


def test_one_factor_is_enough():
    shifted, _ = two_batches(200, 50, "normal", seed=0)
    lfm.tl.fit(shifted, 1, covariates="batch", progress=False)
    assert shifted.varm["lfm_beta"].shape == (50, 1)
