"""`noise="cell_gene"` through the tools: a shallow cell is less sure than a deep one, and every tool knows."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import norm

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.leave_one_out import LeaveOneOut
from scvi_lfm.posterior.predictive import BlockPredictor

N, M, R = 400, 200, 4


def simulated(seed=0, n=N):
    rng = np.random.default_rng(seed)
    cell_sigma, sigma = (rng.permutation(np.geomspace(0.5, 2, size)) for size in (n, M))
    return lfm.datasets.simulate(n, M, R, sigma=sigma, cell_sigma=cell_sigma, rng=seed)


@pytest.fixture(scope="module")
def adata():
    made = simulated()
    lfm.tl.fit(made, R, noise="cell_gene", progress=False)
    return made


def quartiles(adata, true_eta):
    """Share of true eta within 90 % intervals, in quartiles of the noise of cells."""
    moments = BlockPredictor(read_fit(adata, "lfm").posterior, dtype=torch.float64).moments(slice(None))
    inside = np.abs(true_eta(adata) - moments.mean.numpy()) < norm.ppf(0.95) * moments.var.sqrt().numpy()
    order = np.argsort(adata.obs["sigma"].to_numpy())
    return [inside[part].mean() for part in np.array_split(order, 4)]


@pytest.mark.parametrize("noise", ["shared", "gene", "cell_gene"])
def test_ninety_percent_intervals_of_eta_in_quartiles_of_cell_noise(true_eta, noise):
    shares = []
    for seed in range(2):
        adata = simulated(seed)
        lfm.tl.fit(adata, R, noise=noise, progress=False)
        shares.append(quartiles(adata, true_eta))
    mean = np.mean(shares, axis=0)
    within = mean.min() > 0.87 and mean.max() < 0.93
    assert within == (noise == "cell_gene")


def test_noise_is_found(adata):
    found, true = adata.obs["lfm_sigma"].to_numpy(), adata.obs["sigma"].to_numpy()
    assert np.exp(np.log(found).mean()) == pytest.approx(1, abs=1e-4)
    level = np.exp(np.log(true).mean())
    # a standard deviation from 200 values is known to 5 %
    assert np.std(np.log(found / true)) < 0.07
    assert np.std(np.log(adata.var["lfm_sigma"] / adata.var["sigma"])) < 0.06
    assert np.median(adata.var["lfm_sigma"] / adata.var["sigma"]) == pytest.approx(level, rel=0.03)


def test_stored_fields(adata):
    uns = adata.uns["lfm"]
    assert "cell_cov" not in uns
    assert uns["cell_basis"].shape == (R + 1, R + 1)
    assert uns["cell_eig"].shape == (R + 1,)
    assert adata.obs["lfm_sigma"].dtype == np.float32
    order = np.argsort(adata.obs["lfm_sigma"].to_numpy())
    for sd in (adata.obs["lfm_a_sd"].to_numpy(), *adata.obsm["X_lfm_sd"].T):
        assert (np.diff(sd[order]) >= 0).all()
        assert sd[order[-1]] > 1.5 * sd[order[0]]


def test_variance_of_the_data_is_not_weighted(adata):
    explained = adata.obsm["X_lfm"].var(0)
    np.testing.assert_allclose(adata.uns["lfm"]["variance_ratio"], explained / adata.X.var(0).sum(), rtol=1e-3)


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
def test_projecting_the_fitted_cells_gives_what_the_fit_gave(family):
    fitted = simulated()
    lfm.tl.fit(fitted, R, noise="cell_gene", family=family, progress=False)
    again = ad.AnnData(fitted.X, var=fitted.var[[]], obs=fitted.obs[[]])
    lfm.tl.project(again, fitted)
    np.testing.assert_allclose(again.obsm["X_lfm"], fitted.obsm["X_lfm"], atol=1e-5)
    np.testing.assert_allclose(again.obsm["X_lfm_sd"], fitted.obsm["X_lfm_sd"], rtol=1e-4)
    np.testing.assert_allclose(again.obs["lfm_sigma"], fitted.obs["lfm_sigma"], rtol=1e-4)


def test_noise_of_new_cells_is_found(adata):
    both = simulated(3, n=N)
    reference, new = both[: N // 2].copy(), both[N // 2 :].copy()
    lfm.tl.fit(reference, R, noise="cell_gene", progress=False)
    lfm.tl.project(new, reference)
    ratio = np.log(new.obs["lfm_sigma"] / new.obs["sigma"])
    known = np.log(reference.obs["lfm_sigma"] / reference.obs["sigma"])
    assert abs(ratio.mean() - known.mean()) < 0.03
    assert ratio.std() < 0.07


def test_predictions_take_the_noise_of_cell_and_gene(adata):
    table = lfm.tl.predict(adata, obs_names=["cell_0", "cell_9"], var_names=["gene_1", "gene_5"])
    noise = np.outer(adata.obs["lfm_sigma"].iloc[[0, 9]], adata.var["lfm_sigma"].iloc[[1, 5]]).ravel()
    np.testing.assert_allclose(table["predictive_sd"] ** 2 - table["sd"] ** 2, noise**2, rtol=1e-6)


def test_leave_one_out_is_close_to_projecting_without_the_gene(adata):
    """The cell's side alone, which is exact: the leave-one-out value also takes the entry from its gene."""
    q = read_fit(adata, "lfm").posterior
    y = torch.as_tensor(adata.X)
    loo = LeaveOneOut(q, torch.float64).eta(y.double(), slice(None))
    quiet = int(np.argmin(adata.var["lfm_sigma"]))
    others = np.arange(M) != quiet
    part = ad.AnnData(adata.X[:, others], obs=adata.obs[[]], var=adata.var[[]][others])
    with pytest.warns(UserWarning, match="absent"):
        lfm.tl.project(part, adata)
    again = part.obs["lfm_a"].to_numpy() + part.obsm["X_lfm"] @ adata.varm["lfm"][quiet]
    again += adata.uns["lfm"]["mu"] + adata.var["lfm_b"].iloc[quiet]
    fitted = BlockPredictor(q, dtype=torch.float64).mean(slice(None))[:, quiet].numpy()
    shift, expected = loo.mean[:, quiet].numpy() - fitted, again - fitted
    assert np.corrcoef(shift, expected)[0, 1] > 0.97
    # the predictive is calibrated in quiet and in noisy cells
    predictive = LeaveOneOut(q).predictive(y, slice(None))
    inside = ((y - predictive.mean).abs() < norm.ppf(0.95) * predictive.var.sqrt()).double().mean(1).numpy()
    for cells in np.array_split(np.argsort(adata.obs["sigma"].to_numpy()), 4):
        assert 0.88 < inside[cells].mean() < 0.92


def test_every_tool_runs_and_survives_a_file(adata, tmp_path):
    adata = adata.copy()
    adata.X[7, 3] += 40
    adata.obs["half"] = np.where(np.arange(N) < N // 2, "a", "b")
    adata.obs["half"] = adata.obs["half"].astype("category")
    adata.write_h5ad(tmp_path / "fit.h5ad")
    read = ad.read_h5ad(tmp_path / "fit.h5ad")
    for each in (adata, read):
        lfm.tl.rank_genes(each, "half")
        lfm.tl.rank_cells(each, ["gene_1"])
        lfm.tl.anomalies(each)
    entries = lfm.get.anomalies_df(adata)
    assert entries[["cell", "gene", "direction"]].iloc[0].tolist() == ["cell_7", "gene_3", "up"]
    np.testing.assert_array_equal(adata.obs["lfm_anomaly"], read.obs["lfm_anomaly"])
    draws = lfm.tl.sample_posterior(adata[:40], 300)["A"]
    np.testing.assert_allclose(draws.std(0).mean(1), adata.obsm["X_lfm_sd"][:40].mean(1), rtol=0.15)
    assert lfm.tl.check(adata, refit=False).calibration["coverage"].iloc[0] == pytest.approx(0.9, abs=0.02)


def test_minibatches_of_sparse_cells_come_close(adata):
    other = simulated()
    other.X = sp.csr_matrix(other.X)
    lfm.tl.fit(other, R, noise="cell_gene", batch_size=100, tol=1e-3, max_epochs=40, progress=False)
    assert np.corrcoef(other.obs["lfm_sigma"], adata.obs["lfm_sigma"])[0, 1] > 0.999
    ends = [each.uns["lfm"]["elbo"]["value"][-1] for each in (adata, other)]
    assert ends[1] > ends[0] - 0.01


def test_another_fit_leaves_no_noise_of_cells_behind(adata):
    again = adata.copy()
    lfm.tl.fit(again, R, progress=False)
    assert "lfm_sigma" not in again.obs
    assert read_fit(again, "lfm").posterior.noise.cell is None


def test_noise_of_cells_overwritten_or_lost(adata):
    lost = adata.copy()
    del lost.obs["lfm_sigma"]
    with pytest.raises(KeyError, match="obs has no 'lfm_sigma'"):
        lfm.tl.rank_cells(lost, ["gene_1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "pyro"}, "belongs to engine='natural_gradient'"),
        ({"prior_scales": {"sigma": 1.0}}, "Leave one of the two out"),
    ],
)
def test_what_does_not_go_with_it_is_refused(adata, options, message):
    with pytest.raises(ValueError, match=message):
        lfm.tl.fit(adata.copy(), R, noise="cell_gene", progress=False, **options)
