"""`n_factors="auto"`."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm.inference.counts import objective
from scvi_lfm.tl import _fit_checks

N, M = 400, 200
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


def factors(singular_values, *, seed, n=N, m=M):
    """Values with unit noise, margins, and factors of these singular values in units of sqrt(n)."""
    rng = np.random.default_rng(seed)
    r = len(singular_values)
    A = np.linalg.qr(rng.normal(size=(n, r)))[0] * np.sqrt(n) * singular_values
    B = np.linalg.qr(rng.normal(size=(m, r)))[0]
    eta = 0.5 + rng.normal(0, 0.3, (n, 1)) + rng.normal(size=m) + A @ B.T
    return ad.AnnData((eta + rng.normal(size=(n, m))).astype(np.float32))


def auto(adata, **options):
    lfm.tl.fit(adata, "auto", **{"progress": False} | options)
    return adata.obsm["X_lfm"].shape[1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.slow
def test_finds_twelve_factors_of_one_and_a_half_times_the_threshold(seed):
    weakest = 1.5 * (1 + np.sqrt(M / N))
    adata = factors(weakest * np.linspace(2.5, 1, 12), seed=seed)
    assert auto(adata) == 12
    stored = adata.uns["lfm"]
    assert stored["converged"]
    assert stored["params"]["n_factors"] == 12
    assert stored["params"]["max_factors"] == 50
    assert adata.varm["lfm"].shape == (M, 12)
    assert len(stored["variance_ratio"]) == 12
    assert (adata.varm["lfm_sd"] > 0).all()


# batches as small as this do not settle, whatever the number of factors
@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize("noise", ["gene", pytest.param("shared", marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch_size", [150, pytest.param(None, marks=pytest.mark.slow)])
def test_neither_the_noise_nor_the_batches_nor_the_bound_matter(monkeypatch, noise, batch_size):
    adata = factors(np.linspace(5, 2.5, 6), seed=0)
    assert auto(adata, noise=noise, batch_size=batch_size) == 6
    monkeypatch.setattr(_fit_checks, "MOST_FACTORS", 15)
    assert auto(adata, noise=noise, batch_size=batch_size) == 6
    assert adata.uns["lfm"]["params"]["max_factors"] == 15


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_has_none(seed, tmp_path):
    adata = factors(np.zeros(0), seed=seed)
    assert auto(adata) == 0
    assert adata.uns["lfm"]["converged"]
    adata.write_h5ad(tmp_path / "none.h5ad")
    again = ad.read_h5ad(tmp_path / "none.h5ad")
    expected = lfm.tl.predict(again, obs_names="0", var_names="1")["expected"].iloc[0]
    assert expected == pytest.approx(
        adata.uns["lfm"]["mu"] + adata.obs["lfm_a"].iloc[0] + adata.var["lfm_b"].iloc[1], rel=1e-5
    )


@pytest.mark.half_slow
@pytest.mark.parametrize("n_factors", [0, 4])
def test_counts(monkeypatch, n_factors):
    monkeypatch.setattr(objective, "ENTRIES", 20_000)
    monkeypatch.setattr(_fit_checks, "MOST_FACTORS_OF_COUNTS", 12)
    scales = [0.5] * n_factors or [0.0]
    adata = lfm.datasets.simulate(
        300, 150, len(scales), likelihood="negative_binomial", factor_scales=scales, rng=n_factors
    )
    assert abs(auto(adata) - n_factors) <= 1
    assert adata.uns["lfm"]["params"]["max_factors"] == 12
    # beyond the true number the bound falls, up to a nat of the whole data set
    assert np.diff(adata.uns["lfm"]["rank"]["elbo"])[n_factors + 2 :].max() < 1 / (adata.n_obs * adata.n_vars)


@pytest.mark.parametrize(
    "options", [{"covariates": "batch"}, pytest.param({"noise": "cell_gene"}, marks=pytest.mark.slow)], ids=str
)
def test_covariates_and_noise_of_cells_are_no_factors(options):
    adata = factors(np.linspace(5, 2.5, 4), seed=0)
    adata.obs["batch"] = np.repeat(["one", "two"], N // 2)
    shift = np.random.default_rng(1).normal(0, 1, M)
    adata.X[N // 2 :] += shift.astype(np.float32)
    # the shift is a factor where nothing takes it up
    assert auto(adata, **options) == (4 if "covariates" in options else 5)


def test_gives_what_a_fit_of_that_many_factors_gives():
    adata = factors(np.linspace(5, 2.5, 6), seed=1)
    known = adata.copy()
    auto(adata, tol=1e-4)
    lfm.tl.fit(known, 6, tol=1e-4, progress=False)
    assert adata.uns["lfm"]["elbo"]["value"][-1] == pytest.approx(known.uns["lfm"]["elbo"]["value"][-1], abs=1e-5)
    eta = [a.obsm["X_lfm"] @ a.varm["lfm"].T for a in (adata, known)]
    np.testing.assert_allclose(*eta, atol=0.05)


def test_same_seed_same_bits():
    adata = factors(np.linspace(5, 2.5, 3), seed=0, n=120, m=60)
    again = adata.copy()
    assert auto(adata) == auto(again)
    np.testing.assert_array_equal(adata.obsm["X_lfm"], again.obsm["X_lfm"])
    np.testing.assert_array_equal(adata.uns["lfm"]["rank"]["elbo"], again.uns["lfm"]["rank"]["elbo"])


def test_warns_at_the_most_that_is_tried(monkeypatch):
    monkeypatch.setattr(_fit_checks, "MOST_FACTORS", 5)
    adata = factors(np.linspace(5, 3, 8), seed=0)
    with pytest.warns(UserWarning, match="still rises at 5 factors, the most that n_factors='auto' tries.* n_factors="):
        assert auto(adata) == 5


def test_without_epochs_left_factors_are_dropped_all_the_same():
    adata = factors(np.linspace(5, 2.5, 6), seed=0)
    with pytest.warns(UserWarning, match="did not converge"):
        assert auto(adata, max_epochs=1) < 50


def test_a_number_stores_no_curve():
    adata = factors(np.full(2, 4.0), seed=0, n=60, m=30)
    auto(adata)
    lfm.tl.fit(adata, 2, progress=False)
    assert "rank" not in adata.uns["lfm"]
    assert "max_factors" not in adata.uns["lfm"]["params"]


def test_margins_alone_can_be_checked():
    adata = factors(np.zeros(0), seed=0, n=100, m=60)
    lfm.tl.fit(adata, 0, progress=False)
    convergence = lfm.tl.check(adata).convergence
    assert len(convergence) == 2
    assert convergence["eta_difference"].max() < 0.3
