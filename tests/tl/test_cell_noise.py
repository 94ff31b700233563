"""`noise="cell_gene"`: noise sigma_i sigma_j, against loops in NumPy and simulation."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
from scipy.stats import norm

import scvi_lfm as lfm

N, M, R = 90, 70, 2


def simulate(n, m, r, seed, true_eta, *, spread=4.0):
    """Noise that varies `spread`-fold between cells and twofold between genes, the truth beside it."""
    adata = lfm.datasets.simulate(n, m, r, sigma=0.5, rng=seed)
    rng = np.random.default_rng(seed)
    of_cells = rng.permutation(np.geomspace(spread**-0.5, spread**0.5, n))
    of_genes = rng.permutation(np.geomspace(0.7, 1.4, m))
    noise = rng.standard_normal((n, m)) * of_cells[:, None] * of_genes
    adata.X = (true_eta(adata) + noise).astype(np.float32)
    adata.obs["true_sigma"], adata.var["true_sigma"] = of_cells, of_genes
    return adata


@pytest.fixture(scope="module", params=["row_block", "mean_field"])
def fitted(request, true_eta):
    adata = simulate(N, M, R, 0, true_eta)
    lfm.tl.fit(adata, R, likelihood="normal", noise="cell_gene", family=request.param, tol=1e-6, progress=False)
    return adata


def gene_covs(adata):
    uns = adata.uns["lfm"]
    spread = 1 / (uns["gene_eig"] / adata.var["lfm_sigma"].to_numpy(float)[:, None] ** 2 + 1)
    return np.einsum("ik,jk,lk->jil", uns["gene_basis"], spread, uns["gene_basis"])


def cell_covs(adata):
    uns = adata.uns["lfm"]
    spread = 1 / (uns["cell_eig"] / adata.obs["lfm_sigma"].to_numpy(float)[:, None] ** 2 + 1)
    return np.einsum("ik,jk,lk->jil", uns["cell_basis"], spread, uns["cell_basis"])


def rows(adata):
    cells = np.column_stack([adata.obs["lfm_a"], adata.obsm["X_lfm"]]).astype(float)
    return cells, np.column_stack([adata.var["lfm_b"], adata.varm["lfm"]]).astype(float)


def moments_of_eta(adata):
    """Mean and variance of each eta, from dense covariances."""
    (cells, genes), S, T = rows(adata), cell_covs(adata), gene_covs(adata)
    u, v = cells.copy(), genes.copy()
    u[:, 0] = v[:, 0] = 1
    mean = adata.uns["lfm"]["mu"] + genes[:, 0] + cells @ v.T
    var = np.einsum("jk,ikl,jl->ij", v, S, v) + np.einsum("ik,jkl,il->ij", u, T, u)
    return mean, var + np.einsum("ikl,jkl->ij", S[:, 1:, 1:], T[:, 1:, 1:])


def test_a_cell_solves_both_of_its_equations(fitted):
    """q given the noise and the noise given q, by loops over cells from another start."""
    (cells, genes), T = rows(fitted), gene_covs(fitted)
    uns, y = fitted.uns["lfm"], np.asarray(fitted.X, dtype=float)
    weight = 1 / fitted.var["lfm_sigma"].to_numpy(float) ** 2
    v = genes.copy()
    v[:, 0] = 1
    second = v[:, :, None] * v[:, None, :]
    second[:, 1:, 1:] += T[:, 1:, 1:]
    cross = genes[:, :1] * v
    cross[:, 1:] += T[:, 0, 1:]
    prior_precision = np.linalg.inv(uns["prior_cell_cov"])
    information = np.einsum("j,jkl->kl", weight, second)
    squares_of_b = genes[:, 0] ** 2 + T[:, 0, 0]
    for i in range(0, N, 9):
        omega = 0.3
        for _ in range(300):
            S = np.linalg.inv(prior_precision + omega * information)
            target = weight * (y[i] - uns["mu"]) @ v - weight @ cross
            mean = S @ (omega * target + prior_precision @ uns["prior_cell_mean"])
            # mean field's covariance is diagonal in the gauge of the fit, which is not stored
            own = cell_covs(fitted)[i] if uns["params"]["family"] == "mean_field" else S
            z = y[i] - uns["mu"]
            error = z**2 - 2 * z * genes[:, 0] + squares_of_b - 2 * (z[:, None] * v - cross) @ mean
            error += np.einsum("jkl,kl->j", second, np.outer(mean, mean) + own)
            omega = 1 / np.mean(weight * error)
        np.testing.assert_allclose(mean, cells[i], rtol=2e-3, atol=2e-3)
        assert omega**-0.5 == pytest.approx(fitted.obs["lfm_sigma"].iloc[i], rel=2e-3)


def test_the_last_elbo_is_that_of_the_stored_fit(fitted):
    """Expected log density and divergences, from dense arrays."""
    uns, y = fitted.uns["lfm"], np.asarray(fitted.X, dtype=float)
    (cells, genes), S, T = rows(fitted), cell_covs(fitted), gene_covs(fitted)
    mean, var = moments_of_eta(fitted)
    noise = np.outer(fitted.obs["lfm_sigma"], fitted.var["lfm_sigma"]).astype(float)
    total = np.sum(norm.logpdf(y, mean, noise) - var / (2 * noise**2))
    for means, covs, side in ((cells, S, "cell"), (genes, T, "gene")):
        centre, prior = uns[f"prior_{side}_mean"], uns[f"prior_{side}_cov"]
        for row, cov in zip(means, covs, strict=True):
            apart, ratio = row - centre, np.linalg.solve(prior, cov)
            quadratic = apart @ np.linalg.solve(prior, apart)
            total -= 0.5 * (np.trace(ratio) + quadratic - len(row) - np.linalg.slogdet(ratio)[1])
    mu_var = 1 / (1e-4 + np.sum(noise**-2.0))
    total -= 0.5 * (mu_var * 1e-4 + uns["mu"] ** 2 * 1e-4 - 1 - np.log(mu_var * 1e-4)) + 0.5
    assert uns["elbo"]["value"][-1] == pytest.approx(total / (N * M), abs=5e-4)


def test_coordinate_ascent_never_lowers_the_elbo(true_eta):
    adata = simulate(N, M, R, 1, true_eta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lfm.tl.fit(adata, R, likelihood="normal", noise="cell_gene", max_epochs=25, tol=1e-12, progress=False)
    values = adata.uns["lfm"]["elbo"]["value"][:-1]
    assert len(values) > 5
    # products of float32 values tell no less
    assert np.diff(values).min() > -5e-7


def test_noise_is_recovered_and_intervals_hold_in_every_quarter_of_it(true_eta):
    covered = {"cell_gene": [], "shared": []}
    for seed in range(2):
        for noise, shares in covered.items():
            adata = simulate(400, 300, 3, seed, true_eta)
            lfm.tl.fit(adata, 3, likelihood="normal", noise=noise, progress=False)
            rank = adata.obs["true_sigma"].rank(pct=True).to_numpy()
            if noise == "cell_gene":
                mean, var = moments_of_eta(adata)
                ratio = np.log(adata.obs["lfm_sigma"] / adata.obs["true_sigma"])
                assert abs(ratio.mean()) < 0.01
                assert ratio.std() < 0.06
                assert np.log(adata.obs["lfm_sigma"]).mean() == pytest.approx(0, abs=1e-3)
            else:
                table = lfm.tl.predict(adata, obs_names=adata.obs_names[:], var_names=adata.var_names[::10])
                shape = (400, 30)
                mean, var = table["expected"].to_numpy().reshape(shape), table["sd"].to_numpy().reshape(shape) ** 2
            eta = true_eta(adata)[:, :: 1 if noise == "cell_gene" else 10]
            inside = np.abs(eta - mean) < norm.ppf(0.95) * np.sqrt(var)
            shares.append([inside[(rank > low) & (rank <= low + 0.25)].mean() for low in (0, 0.25, 0.5, 0.75)])
    own, shared = (np.mean(covered[noise], axis=0) for noise in ("cell_gene", "shared"))
    assert ((own > 0.86) & (own < 0.93)).all()
    # one noise for all is too cautious where cells are quiet and too bold where they are not
    assert shared[0] > 0.95
    assert shared[3] < 0.85


def test_minibatches_reach_the_same(true_eta):
    whole, parts = simulate(400, 120, 2, 3, true_eta), simulate(400, 120, 2, 3, true_eta)
    lfm.tl.fit(whole, 2, likelihood="normal", noise="cell_gene", progress=False)
    lfm.tl.fit(parts, 2, likelihood="normal", noise="cell_gene", batch_size=100, progress=False)
    ratio = np.log(parts.obs["lfm_sigma"] / whole.obs["lfm_sigma"])
    assert ratio.std() < 0.02
    assert np.abs(ratio).max() < 0.1
    gap = whole.uns["lfm"]["elbo"]["value"][-1] - parts.uns["lfm"]["elbo"]["value"][-1]
    gained = whole.uns["lfm"]["elbo"]["value"][-1] - whole.uns["lfm"]["elbo"]["rank0"]
    assert abs(gap) < 0.02 * gained


def test_predictions_take_the_noise_of_the_cell(fitted):
    names = fitted.obs_names[[0, 5]], fitted.var_names[:3]
    table = lfm.tl.predict(fitted, obs_names=names[0], var_names=names[1])
    mean, var = moments_of_eta(fitted)
    noise = np.outer(fitted.obs["lfm_sigma"], fitted.var["lfm_sigma"])
    at = np.ix_([0, 5], range(3))
    np.testing.assert_allclose(table["expected"], mean[at].ravel(), rtol=1e-5)
    np.testing.assert_allclose(table["predictive_sd"], np.sqrt(var + noise**2)[at].ravel(), rtol=1e-4)


def test_cells_project_onto_themselves(fitted, tmp_path):
    new = ad.AnnData(fitted.X[10:30], obs=fitted.obs[[]].iloc[10:30], var=fitted.var[[]])
    fitted.write_h5ad(tmp_path / "fit.h5ad")
    lfm.tl.project(new, ad.read_h5ad(tmp_path / "fit.h5ad"))
    for name in ("lfm_a", "lfm_a_sd", "lfm_sigma"):
        expected = fitted.obs[name].iloc[10:30]
        # the fit counts the variance of mu, one part in n m of a cell's squares
        np.testing.assert_allclose(new.obs[name], expected, rtol=2 / (N * M), atol=2e-5 * expected.std())
    np.testing.assert_allclose(new.obsm["X_lfm_sd"], fitted.obsm["X_lfm_sd"][10:30], rtol=2 / (N * M))
    assert "lfm_sigma" in new.obs
    assert "cell_cov" not in new.uns["lfm"]


def test_every_tool_works(fitted):
    adata = fitted.copy()
    adata.obs["group"] = np.where(np.arange(N) % 2, "one", "other")
    lfm.tl.rank_genes(adata, "group")
    assert np.isfinite(lfm.get.rank_genes_df(adata, "one")["sd"]).all()
    adata.X[3, 7] += 30
    lfm.tl.anomalies(adata, direction="up")
    first = lfm.get.anomalies_df(adata).iloc[0]
    assert (first["cell"], first["gene"]) == (adata.obs_names[3], adata.var_names[7])
    draws = lfm.tl.sample_posterior(adata, 400, rng=0)["A"]
    ratio = draws.std(axis=0) / adata.obsm["X_lfm_sd"]
    assert abs(np.log(ratio).mean()) < 0.05
    assert np.log(ratio).std() < 0.1
    report = lfm.tl.check(fitted, refit=False)
    assert 0.86 < report.calibration["coverage"].iloc[0] < 0.94


def test_a_later_fit_leaves_no_noise_of_cells_behind(fitted):
    adata = fitted.copy()
    lfm.tl.fit(adata, R, likelihood="normal", progress=False)
    assert "lfm_sigma" not in adata.obs
    assert "cell_basis" not in adata.uns["lfm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "pyro"}, "belongs to engine='natural_gradient'"),
        ({"prior_scales": {"sigma": 1.0}}, "fixes the noise"),
        ({"likelihood": "poisson"}, "`noise` belongs to likelihood='normal'"),
    ],
)
def test_refused(options, message):
    adata = lfm.datasets.simulate(30, 20, 2, likelihood="poisson")
    with pytest.raises(ValueError, match=message):
        lfm.tl.fit(adata, 2, **{"likelihood": "normal", "noise": "cell_gene"} | options)
    assert "lfm" not in adata.uns
