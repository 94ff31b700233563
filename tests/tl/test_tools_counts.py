"""What the tools answer from a fit of counts: against formulas and simulation, after files, and without covariances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import scvi_lfm as lfm
from simulated import true_eta
from triangles import unpacked

N, M, R = 120, 60, 3
COUNTS = ("negative_binomial", "poisson", "bernoulli")
# the Poisson is a negative binomial
MOST_COUNTS = ("negative_binomial", pytest.param("poisson", marks=pytest.mark.slow), "bernoulli")


def simulate(likelihood="negative_binomial", **options):
    adata = lfm.datasets.simulate(
        N, M, R, likelihood=likelihood, mu=0.5, factor_scales=[0.8, 0.6, 0.4], depth_spread=0.5, **options
    )
    leading = adata.obsm["A"][:, 0]
    adata.obs["group"] = pd.Categorical(np.where(leading > 0.8, "high", np.where(leading < -0.5, "low", "middle")))
    return adata


@pytest.fixture(scope="module")
def fits():
    """A fit for each likelihood. Shared: copy before writing into one."""
    made = {}
    for likelihood in COUNTS:
        adata = simulate(likelihood)
        lfm.tl.fit(adata, R, likelihood=likelihood, progress=False)
        made[likelihood] = adata
    return made


@pytest.fixture(params=MOST_COUNTS)
def fitted(request, fits):
    return fits[request.param]


@dataclass(frozen=True)
class Fields:
    """What `tl.fit` stored, read without the package: the tests' own reader."""

    mu: float
    cells: np.ndarray  # (n, r+1): (a, A)
    S: np.ndarray  # (n, r+1, r+1)
    genes: np.ndarray  # (m, r+1): (b, B)
    T: np.ndarray  # (m, r+1, r+1)
    size: np.ndarray  # (n,)
    phi: np.ndarray  # (m,)
    likelihood: str
    prior_cov: np.ndarray


def read_fields(adata):
    likelihood = adata.uns["lfm"]["params"]["likelihood"]
    phi = 1 / adata.var["lfm_theta"].to_numpy(float) if likelihood == "negative_binomial" else np.zeros(adata.n_vars)
    return Fields(
        mu=adata.uns["lfm"]["mu"],
        cells=np.column_stack([adata.obs["lfm_a"], adata.obsm["X_lfm"]]).astype(float),
        S=unpacked(adata.obsm["lfm_cov"]),
        genes=np.column_stack([adata.var["lfm_b"], adata.varm["lfm"]]).astype(float),
        T=unpacked(adata.varm["lfm_cov"]),
        size=adata.obs["lfm_size_factor"].to_numpy(float),
        phi=phi,
        likelihood=likelihood,
        prior_cov=adata.uns["lfm"]["prior_cell_cov"],
    )


def eta_of(fields, i, j):
    """Mean and variance of eta of one entry, the size factor in it, from dense covariances."""
    (a, *A), (b, *B), S, T = fields.cells[i], fields.genes[j], fields.S[i], fields.T[j]
    u, v = np.array([1, *A]), np.array([1, *B])
    mean = math.log(fields.size[i]) + fields.mu + a + b + np.dot(A, B)
    return mean, u @ T @ u + v @ S @ v + np.trace(S[1:, 1:] @ T[1:, 1:])


# predict


def test_expected_counts_and_their_spread(fitted):
    fields = read_fields(fitted)
    cells, genes = ["cell_7", "cell_100", "cell_0"], ["gene_50", "gene_3"]
    table = lfm.tl.predict(fitted, obs_names=cells, var_names=genes)
    assert table.columns.tolist() == ["cell", "gene", "expected", "sd", "predictive_sd", "q0.05", "q0.95"]
    assert table["cell"].tolist() == np.repeat(cells, 2).tolist()
    assert table["gene"].tolist() == genes * 3
    for row in table.itertuples():
        j = fitted.var_names.get_loc(row.gene)
        mean, var = eta_of(fields, fitted.obs_names.get_loc(row.cell), j)
        if fields.likelihood == "bernoulli":
            z = np.linspace(-9, 9, 4001)
            weight = norm.pdf(z) / norm.pdf(z).sum()
            expected = -weight @ np.expm1(-np.exp(mean + math.sqrt(var) * z))
            spread, tolerance = math.sqrt(expected * (1 - expected)), 2e-3
        else:
            expected, phi = math.exp(mean + var / 2), math.expm1(var) * (1 + fields.phi[j]) + fields.phi[j]
            spread, tolerance = math.sqrt(expected + phi * expected**2), 1e-5
        assert row.expected == pytest.approx(expected, rel=tolerance)
        assert row.sd == pytest.approx(math.sqrt(var), rel=1e-5)
        assert row.predictive_sd == pytest.approx(spread, rel=tolerance)


def test_the_layer_holds_what_the_table_says(fitted):
    adata = fitted.copy()
    lfm.tl.predict(adata, layer_added="expected")
    table = lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names))
    assert adata.layers["expected"].dtype == np.float32
    np.testing.assert_allclose(adata.layers["expected"].ravel(), table["expected"], rtol=1e-3)


@pytest.mark.half_slow
def test_quantiles_are_those_of_values_drawn_from_the_posterior(fitted):
    """Draws of the latents, and a count from each."""
    n_draws, rng = 4000, np.random.default_rng(0)
    fields, cells, genes = read_fields(fitted), [3, 50, 100], np.arange(0, M, 4)
    draws = lfm.tl.sample_posterior(fitted[cells].copy(), n_draws)
    eta = draws["mu"] + draws["a"][:, :, None] + draws["b"][:, None, genes]
    eta = eta + np.einsum("sik,sjk->sij", draws["A"], draws["B"][:, genes])
    rate = fields.size[cells][:, None] * np.exp(eta.astype(float))
    if fields.likelihood == "bernoulli":
        values = (rng.random(rate.shape) < -np.expm1(-rate)).astype(float)
    else:
        shape = 1 / np.maximum(fields.phi[genes], 1e-8)
        values = rng.poisson(rate * rng.gamma(shape, 1 / shape, size=rate.shape)).astype(float)
    table = lfm.tl.predict(
        fitted,
        obs_names=fitted.obs_names[cells].tolist(),
        var_names=fitted.var_names[genes].tolist(),
        quantiles=(0.05, 0.9),
    )
    for level in (0.05, 0.9):
        found = table[f"q{level:g}"].to_numpy().reshape(3, -1)
        assert (found == np.rint(found)).all()
        # the least value whose probability, with those below it, is the level; a rate's tail is not quite a gamma's
        allowed = 0.015 + 4 * math.sqrt(level * (1 - level) / n_draws)
        assert ((values <= found).mean(0) > level - allowed).all()
        assert ((values < found).mean(0) < level + allowed).all()
    expected = table["expected"].to_numpy().reshape(3, -1)
    error = values.std(0) / math.sqrt(n_draws)
    assert (np.abs(values.mean(0) - expected) < 5 * error + 0.02 * expected).all()


def test_quantiles_cover_new_counts(fits):
    """Nine in ten, or more: the law of counts is discrete."""
    adata = fits["negative_binomial"]
    table = lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names))
    rate = adata.obs["size_factor"].to_numpy()[:, None] * np.exp(true_eta(adata))
    theta = adata.var["theta"].to_numpy()
    rng = np.random.default_rng(5)
    new = rng.poisson(rate * rng.gamma(theta, 1 / theta, size=rate.shape)).ravel()
    covered = ((new >= table["q0.05"]) & (new <= table["q0.95"])).mean()
    assert 0.88 < covered < 0.99
    assert ((table["q0.95"] >= table["q0.05"]) & (table["q0.05"] >= 0)).all()


# the search for genes and for cells


@pytest.mark.parametrize("reference", ["rest", "low", None])
def test_genes_rank_by_inner_products(fitted, reference):
    adata, fields = fitted.copy(), read_fields(fitted)
    lfm.tl.rank_genes(adata, "group", groups=["high"], reference=reference)
    table = lfm.get.rank_genes_df(adata).set_index("names")
    inside = (adata.obs["group"] == "high").to_numpy()
    outside = {"rest": ~inside, "low": (adata.obs["group"] == "low").to_numpy(), None: None}[reference]
    difference = fields.cells[inside].mean(0)
    V = fields.S[inside].sum(0) / inside.sum() ** 2
    if outside is not None:
        difference = difference - fields.cells[outside].mean(0)
        V = V + fields.S[outside].sum(0) / outside.sum() ** 2
    delta = difference[1:]
    # the order is that of delta . B
    inner = fields.genes[:, 1:] @ delta
    assert table.index.tolist() == adata.var_names[np.argsort(-inner, kind="stable")].tolist()
    for name, row in table.iterrows():
        j = adata.var_names.get_loc(name)
        v, T = np.r_[1, fields.genes[j, 1:]], fields.T[j][1:, 1:]
        score = v @ difference
        sd = math.sqrt(v @ V @ v + delta @ T @ delta + np.trace(T @ V[1:, 1:]))
        assert row["scores"] == pytest.approx(score, rel=1e-4, abs=1e-5)
        assert row["sd"] == pytest.approx(sd, rel=1e-4)
        assert row["lfsr"] == pytest.approx(norm.sf(abs(score) / sd), rel=1e-3, abs=1e-12)
        assert row["logfoldchanges"] == pytest.approx(score / math.log(2), rel=1e-4, abs=1e-5)


def test_the_top_genes_are_those_that_were_planted(fits):
    adata = fits["poisson"].copy()
    lfm.tl.rank_genes(adata, mask_obs=adata.obsm["A"][:, 0] > 0.8)
    table = lfm.get.rank_genes_df(adata).set_index("names")
    chosen = adata.obsm["A"][:, 0] > 0.8
    truth = adata.varm["B"] @ (adata.obsm["A"][chosen].mean(0) - adata.obsm["A"][~chosen].mean(0))
    assert np.corrcoef(truth, table.loc[adata.var_names, "scores"])[0, 1] > 0.97
    error = truth - table.loc[adata.var_names, "scores"].to_numpy()
    # scores are differences from the average gene as much as sizes are
    z = (error - error.mean()) / table.loc[adata.var_names, "sd"].to_numpy()
    assert 0.6 < np.sqrt(np.mean(z**2)) < 2.2


def test_cells_rank_by_inner_products(fitted):
    adata, fields = fitted.copy(), read_fields(fitted)
    genes = ["gene_4", "gene_30", "gene_31"]
    lfm.tl.rank_cells(adata, genes)
    positions = adata.var_names.get_indexer(genes)
    B, T = fields.genes[positions, 1:].mean(0), fields.T[positions][:, 1:, 1:].sum(0) / 9
    for i in range(0, N, 7):
        A, S = fields.cells[i, 1:], fields.S[i][1:, 1:]
        sd = math.sqrt(B @ S @ B + A @ T @ A + np.trace(S @ T))
        assert adata.obs["rank_cells_lfm"].iloc[i] == pytest.approx(A @ B, rel=1e-4, abs=1e-5)
        assert adata.obs["rank_cells_lfm_sd"].iloc[i] == pytest.approx(sd, rel=1e-4)


def test_similar_genes_follow_the_formula(fitted):
    fields = read_fields(fitted)
    Sigma, B = fields.prior_cov[1:, 1:], fields.genes[:, 1:]
    variance = np.einsum("jk,kl,jl->j", B, Sigma, B) + np.einsum("jkl,kl->j", fields.T[:, 1:, 1:], Sigma)
    covariance = B @ Sigma @ B[7]
    correlation = covariance / np.sqrt(variance * variance[7])
    order = [j for j in np.argsort(-correlation, kind="stable") if j != 7][:10]
    table = lfm.tl.similar_genes(fitted, "gene_7", n_top=10)
    assert table["names"].tolist() == fitted.var_names[order].tolist()
    np.testing.assert_allclose(table["correlation"], correlation[order], rtol=1e-5)
    np.testing.assert_allclose(table["covariance"], covariance[order], rtol=1e-5)


# draws


@pytest.mark.half_slow
def test_draws_have_the_moments_of_the_posterior(fitted):
    n_draws = 1500
    fields = read_fields(fitted)
    draws = lfm.tl.sample_posterior(fitted, n_draws)
    assert {name: array.shape for name, array in draws.items()} == {
        "mu": (),
        "a": (n_draws, N),
        "A": (n_draws, N, R),
        "b": (n_draws, M),
        "B": (n_draws, M, R),
    }
    assert {array.dtype for array in draws.values()} == {np.dtype(np.float32)}
    for margin, factors, means, covs in (("a", "A", fields.cells, fields.S), ("b", "B", fields.genes, fields.T)):
        drawn = np.concatenate([draws[margin][..., None], draws[factors]], axis=2).astype(float)
        scale = np.sqrt(np.diagonal(covs, axis1=1, axis2=2))
        standardised = (drawn - means) / scale
        moments = np.einsum("sik,sil->ikl", standardised, standardised) / n_draws
        correlation = covs / (scale[:, :, None] * scale[:, None, :])
        # five and a half standard errors: there are thousands of them
        assert np.abs(standardised.mean(0)).max() < 5.5 / math.sqrt(n_draws)
        assert np.abs(moments - correlation).max() < 5.5 * math.sqrt(2 / n_draws)
        # the cross-covariances of all rows together, five standard errors: draws without them would have a slope of 0
        cross = correlation[:, 0, 1:]
        slope = (moments[:, 0, 1:] * cross).sum() / (cross**2).sum()
        assert abs(slope - 1) < 5 * math.sqrt(2 / (n_draws * (cross**2).sum())) < 0.5


def test_draws_repeat(fits):
    first, again, other = (lfm.tl.sample_posterior(fits["poisson"], 2, rng=seed) for seed in (1, 1, 2))
    for name in ("a", "A", "b", "B"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


# the AnnData is the model


def answers(adata):
    """Something from every tool, as arrays."""
    adata = adata.copy()
    lfm.tl.rank_genes(adata, "group", groups=["high"], reference="low")
    table = lfm.get.rank_genes_df(adata)
    lfm.tl.rank_cells(adata, ["gene_1", "gene_8"])
    entries = lfm.tl.predict(adata, obs_names=["cell_3", "cell_6"], var_names=["gene_1", "gene_8"])
    new = lfm.tl.project(adata.copy(), adata, key_added="new", copy=True)
    draws = lfm.tl.sample_posterior(adata, 2)
    similar = lfm.tl.similar_genes(adata, "gene_1")
    return {
        "names": table["names"].to_numpy(str),
        "scores": table["scores"].to_numpy(),
        "sd": table["sd"].to_numpy(),
        "lfsr": table["lfsr"].to_numpy(),
        "cells": adata.obs["rank_cells_lfm"].to_numpy(),
        "cells' sd": adata.obs["rank_cells_lfm_sd"].to_numpy(),
        "entries": entries.drop(columns=["cell", "gene"]).to_numpy(float),
        "projected": new.obsm["X_new"],
        "projected cov": new.obsm["new_cov"],
        "A": draws["A"],
        "B": draws["B"],
        "similar": similar["names"].to_numpy(str),
        "correlation": similar["correlation"].to_numpy(),
    }


@pytest.mark.parametrize(
    ("likelihood", "form"),
    [("negative_binomial", "h5ad"), ("bernoulli", "h5ad"), pytest.param("poisson", "h5ad", marks=pytest.mark.slow)]
    + [pytest.param(likelihood, "zarr", marks=pytest.mark.slow) for likelihood in COUNTS],
)
def test_after_a_file_every_tool_gives_the_same_bits(fits, likelihood, form, tmp_path):
    adata = fits[likelihood].copy()
    options = {"prior_scales": {"b": 0.9, "A": [1.0, 1.0, 2.0]}, "mask_var": np.arange(M) != 5, "max_epochs": 4}
    lfm.tl.fit(adata, R, likelihood=likelihood, size_factors="size_factor", tol=0.5, progress=False, **options)
    path = tmp_path / f"fit.{form}"
    getattr(adata, f"write_{form}")(path)
    read = getattr(ad, f"read_{form}")(path)
    for container in ("obsm", "varm"):
        for name, values in getattr(adata, container).items():
            np.testing.assert_array_equal(getattr(read, container)[name], values)
            assert getattr(read, container)[name].dtype == values.dtype
    params, again = adata.uns["lfm"]["params"], read.uns["lfm"]["params"]
    assert set(again) == set(params)
    assert again["size_factors"] == "size_factor"
    before, after = answers(adata), answers(read)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_some_cells_are_as_they_were(fitted):
    rows = np.arange(0, N, 3)
    some, whole = answers(fitted[rows].copy()), answers(fitted)
    np.testing.assert_array_equal(some["similar"], whole["similar"])
    for name in ("entries", "correlation"):
        np.testing.assert_allclose(some[name], whole[name], rtol=1e-6)
    for name in ("cells", "cells' sd"):
        np.testing.assert_allclose(some[name], whole[name][rows], rtol=1e-5, atol=1e-6)


def test_some_genes_are_as_they_were(fitted):
    columns = np.arange(1, M, 7)
    some, whole = fitted[:, columns].copy(), fitted.copy()
    tables = []
    for adata in (some, whole):
        lfm.tl.rank_genes(adata, "group", groups=["high"])
        tables.append(lfm.get.rank_genes_df(adata).set_index("names").drop(columns="group", errors="ignore"))
    pd.testing.assert_frame_equal(tables[0], tables[1].loc[tables[0].index], rtol=1e-5)
    entries = [
        lfm.tl.predict(adata, obs_names=["cell_3", "cell_9"], var_names=["gene_1", "gene_8"]) for adata in (some, whole)
    ]
    pd.testing.assert_frame_equal(*entries)


# covariances that were not stored


@pytest.fixture
def lean(monkeypatch):
    """Nothing may be stored for each cell but means and standard deviations."""
    monkeypatch.setattr(lfm.settings, "_max_cov_bytes", N * 10 * 4 - 1)


@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.half_slow
def test_covariances_of_cells_are_left_out_where_they_would_be_too_large(fits, likelihood, monkeypatch):
    adata = simulate(likelihood)
    monkeypatch.setattr(lfm.settings, "_max_cov_bytes", N * 10 * 4)
    lfm.tl.fit(adata, R, likelihood=likelihood, progress=False)
    np.testing.assert_array_equal(adata.obsm["X_lfm"], fits[likelihood].obsm["X_lfm"])
    assert adata.obsm["lfm_cov"].shape == (N, 10)
    monkeypatch.setattr(lfm.settings, "_max_cov_bytes", N * 10 * 4 - 1)
    lfm.tl.fit(adata, R, likelihood=likelihood, progress=False)
    assert "lfm_cov" not in adata.obsm
    assert adata.varm["lfm_cov"].shape == (M, 10)
    distance = np.abs(adata.obsm["X_lfm"] - fits[likelihood].obsm["X_lfm"]) / fits[likelihood].obsm["X_lfm_sd"]
    assert np.sqrt(np.mean(distance**2)) < 0.3
    np.testing.assert_allclose(adata.obsm["X_lfm_sd"], fits[likelihood].obsm["X_lfm_sd"], rtol=0.1)


def test_and_every_tool_answers_as_if_they_had_been_stored(fitted):
    whole = fitted.copy()
    lean = fitted.copy()
    del lean.obsm["lfm_cov"]
    expected, found = answers(whole), answers(lean)
    for name in ("names", "similar"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name in ("scores", "cells", "correlation", "B"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("sd", "cells' sd"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.005, err_msg=name)
    np.testing.assert_allclose(found["entries"][:, :3], expected["entries"][:, :3], rtol=0.005)
    sd = fitted.obsm["X_lfm_sd"]
    assert (np.abs(found["A"] - expected["A"]) / sd).max() < 0.05
    np.testing.assert_array_equal(found["projected"], expected["projected"])


@pytest.mark.usefixtures("lean")
def test_and_so_do_fits_and_projections_without_them(tmp_path):
    adata = simulate()
    reference, new = adata[:80].copy(), adata[80:].copy()
    lfm.tl.fit(adata, R, progress=False)
    assert "lfm_cov" not in adata.obsm
    adata.write_h5ad(tmp_path / "lean.h5ad")
    read = ad.read_h5ad(tmp_path / "lean.h5ad")
    tables = []
    for one in (adata, read):
        lfm.tl.rank_genes(one, "group", groups=["high"])
        tables.append(lfm.get.rank_genes_df(one))
    pd.testing.assert_frame_equal(*tables)
    # these are few enough
    lfm.tl.fit(reference, R, progress=False)
    lfm.tl.project(new, reference)
    assert "lfm_cov" in reference.obsm
    assert "lfm_cov" in new.obsm
    sd = np.sqrt(unpacked(new.obsm["lfm_cov"])[:, 1, 1])
    np.testing.assert_allclose(new.obsm["X_lfm_sd"][:, 0], sd, rtol=1e-5)
