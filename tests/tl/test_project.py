from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.neighbors import KNeighborsClassifier

import scvi_lfm as lfm

OPTIONS = {
    "default": {},
    "noise of each gene": {"noise": "gene"},
    "mean field": {"family": "mean_field"},
    "minibatches": {"batch_size": 40},
    "genes left out": {"mask_var": np.arange(80) % 5 > 0},
    "more factors than needed": {"n_factors": 7},
}


@pytest.fixture(scope="module", params=OPTIONS)
def reference(request, fitted):
    adata = fitted[:, :].copy()
    lfm.tl.fit(adata, **{"n_factors": 3, **OPTIONS[request.param]}, progress=False)
    return adata


def without_fit(adata):
    """The cells and genes alone."""
    new = adata.copy()
    for container, names in (("obsm", ("X_lfm", "X_lfm_sd")), ("varm", ("lfm", "lfm_sd")), ("uns", ("lfm",))):
        for name in names:
            del getattr(new, container)[name]
    new.obs = new.obs.drop(columns=["lfm_a", "lfm_a_sd"])
    new.var = new.var.drop(columns=["lfm_b", "lfm_b_sd", "lfm_sigma"])
    return new


def same_gene_fields(one, other):
    for name in ("lfm_b", "lfm_b_sd", "lfm_sigma"):
        np.testing.assert_allclose(one.var[name], other.var[name], rtol=1e-6)
    for name in ("lfm", "lfm_sd"):
        np.testing.assert_allclose(one.varm[name], other.varm[name], rtol=1e-6)


def same_cells(one, other):
    """Equal but for the rounding of stored genes to float32: at most 4e-6 of their sd in 12 seeds of five fits."""
    for found, expected in ((one.obsm["X_lfm"], other.obsm["X_lfm"]), (one.obs["lfm_a"], other.obs["lfm_a"])):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.asarray(expected).std())


def test_equals_the_fit_on_its_own_cells(reference):
    new = without_fit(reference)
    lfm.tl.project(new, reference)
    same_cells(new, reference)
    np.testing.assert_allclose(new.obsm["X_lfm_sd"], reference.obsm["X_lfm_sd"], rtol=1e-5)
    np.testing.assert_allclose(new.obs["lfm_a_sd"], reference.obs["lfm_a_sd"], rtol=1e-5)
    same_gene_fields(new, reference)


def test_some_cells_and_genes_in_another_order_and_form(fitted):
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(150)[:40], rng.permutation(80)
    new = without_fit(fitted)[rows][:, columns].copy()
    new.X = sp.csc_matrix(new.X)
    lfm.tl.project(new, fitted)
    sd = fitted.obsm["X_lfm_sd"][0]
    assert (np.abs(new.obsm["X_lfm"] - fitted.obsm["X_lfm"][rows]) / sd).max() < 1e-4
    np.testing.assert_array_equal(new.varm["lfm"], fitted.varm["lfm"][columns])


def brute_force(adata, fields, known):
    """The exact posterior of (a, A) from the genes `known`, the others unobserved."""
    k = len(fields.cell_cov)
    precision = np.linalg.inv(fields.cell_prior_cov)
    target = np.tile(precision @ fields.cell_prior_mean, (adata.n_obs, 1))
    T = fields.gene_covs(fields.sigma)
    for j in known:
        v = np.r_[1, fields.genes[j, 1:]]
        second_moment = np.outer(v, v)
        second_moment[1:, 1:] += T[j, 1:, 1:]
        offset = fields.genes[j, 0] * v + np.r_[0, T[j, 0, 1:]]
        y = np.asarray(adata[:, j].X)[:, 0]
        precision = precision + second_moment / fields.sigma**2
        target = target + ((y - fields.mu)[:, None] * v - offset) / fields.sigma**2
    cov = np.linalg.inv(precision)
    assert cov.shape == (k, k)
    return target @ cov, cov


@pytest.mark.parametrize("n_genes", [80, 50, 1])
def test_absent_genes_are_unobserved(fitted, read_fields, n_genes):
    known = np.sort(np.random.default_rng(1).choice(80, n_genes, replace=False))
    mean, cov = brute_force(fitted, read_fields(fitted), known)
    new = without_fit(fitted)[:, known].copy()
    new = new[:, ::-1].copy()
    if n_genes < 80:
        message = f"{80 - n_genes} of 80 fitted genes are absent from `adata` and taken as unobserved"
        with pytest.warns(UserWarning, match=message):
            lfm.tl.project(new, fitted)
    else:
        lfm.tl.project(new, fitted)
    found = np.column_stack([new.obs["lfm_a"], new.obsm["X_lfm"]])
    np.testing.assert_allclose(found, mean, rtol=1e-3, atol=2e-4 * np.sqrt(np.diag(cov)).max())
    np.testing.assert_allclose(new.uns["lfm"]["cell_cov"], cov, rtol=1e-6, atol=1e-7 * cov.max())
    np.testing.assert_allclose(new.obsm["X_lfm_sd"], np.tile(np.sqrt(np.diag(cov))[1:], (150, 1)), rtol=1e-5)
    if n_genes == 1:
        assert (new.obsm["X_lfm_sd"] > fitted.obsm["X_lfm_sd"]).all()


def test_genes_that_the_reference_does_not_know_are_missing(fitted):
    reference, new = fitted[:, :60].copy(), without_fit(fitted)
    lfm.tl.fit(reference, 3, progress=False)
    lfm.tl.project(new, reference)
    same_cells(new, reference)
    assert np.isnan(new.varm["lfm"][60:]).all()
    assert np.isnan(new.var["lfm_sigma"].iloc[60:]).all()
    lfm.tl.rank_genes(new, "group")
    assert set(new.uns["rank_genes_lfm"]["names"]["high"]) == set(reference.var_names)


def test_new_cells_are_as_well_placed_as_those_of_the_fit():
    """Their error is measured in posterior standard deviations, on draws from one model."""
    adata = lfm.datasets.simulate(400, 100, 2)
    reference, new = adata[:200].copy(), adata[200:].copy()
    lfm.tl.fit(reference, 2, progress=False)
    lfm.tl.project(new, reference)
    truth = adata.obsm["A"] @ (adata.varm["B"] - adata.varm["B"].mean(0)).T
    error = [
        np.sqrt(np.mean((part.obsm["X_lfm"] @ part.varm["lfm"].T - (half - truth[:200].mean(0))) ** 2))
        for part, half in ((reference, truth[:200]), (new, truth[200:]))
    ]
    assert error[1] < 1.1 * error[0]


@pytest.mark.filterwarnings("ignore:.* are all zero")
def test_new_blood_cells_land_near_their_type(pbmc_lognorm):
    types = pbmc_lognorm.obs["facs_celltype"].to_numpy()
    half = np.random.default_rng(0).permutation(1200) < 600
    reference, new = pbmc_lognorm[half].copy(), pbmc_lognorm[~half].copy()
    lfm.tl.fit(reference, 10, progress=False)
    lfm.tl.project(new, reference)
    neighbours = KNeighborsClassifier(15).fit(reference.obsm["X_lfm"], types[half])
    correct = neighbours.predict(new.obsm["X_lfm"]) == types[~half]
    # measured: 0.748 of all ten types, as with PCA's projection; 1, 1, 0.88 and 1 of the four that lie apart
    assert correct.mean() > 0.7
    for name in ("CD14+ Monocyte", "CD19+ B", "CD34+", "CD56+ NK"):
        assert correct[types[~half] == name].mean() > 0.8


def test_every_tool_works_on_the_result(fitted):
    reference, new = fitted[:100].copy(), without_fit(fitted)[100:].copy()
    lfm.tl.fit(reference, 3, progress=False, key_added="ref")
    lfm.tl.project(new, reference, key="ref", key_added="mine")
    lfm.tl.rank_genes(new, mask_obs="is_high", key="mine")
    lfm.tl.rank_cells(new, "gene_1", key="mine")
    lfm.tl.anomalies(new, key="mine")
    assert len(lfm.tl.similar_genes(new, "gene_1", key="mine")) == 20
    expected = lfm.tl.predict(new, obs_names=list(new.obs_names), var_names=list(new.var_names), key="mine")
    assert np.corrcoef(expected["expected"], new.X.ravel())[0, 1] > 0.7
    assert lfm.tl.sample_posterior(new, 2, key="mine")["A"].shape == (2, 50, 3)


def test_a_projection_is_a_reference_in_its_turn(fitted):
    first = without_fit(fitted)[:80].copy()
    lfm.tl.project(first, fitted)
    second = without_fit(fitted)[80:].copy()
    lfm.tl.project(second, first)
    assert (np.abs(second.obsm["X_lfm"] - fitted.obsm["X_lfm"][80:]) / fitted.obsm["X_lfm_sd"][0]).max() < 1e-4


def test_nothing_is_shared_with_the_reference(fitted):
    new = lfm.tl.project(without_fit(fitted), fitted, copy=True)
    new.uns["lfm"]["params"]["n_factors"] = -1
    new.uns["lfm"]["variance_ratio"][:] = -1
    assert fitted.uns["lfm"]["params"]["n_factors"] == 3
    assert (fitted.uns["lfm"]["variance_ratio"] > 0).all()


def test_copy_and_layer(fitted):
    source = without_fit(fitted)
    source.layers["values"] = source.X
    reference = source.copy()
    reference.X = np.zeros_like(source.X)
    lfm.tl.fit(reference, 3, layer="values", progress=False)
    result = lfm.tl.project(source, reference, copy=True)
    assert "lfm" not in source.uns
    same_cells(result, reference)
