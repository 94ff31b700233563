"""`tl.fit` with count likelihoods: what it stores, what it reads, and what it leaves alone."""

from __future__ import annotations

import logging
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from same_fit import same_fit

N, M, R = 120, 60, 2
COUNTS = ("negative_binomial", "poisson", "bernoulli")
# the Poisson is a negative binomial
MOST_COUNTS = ("negative_binomial", pytest.param("poisson", marks=pytest.mark.slow), "bernoulli")
PACKED = (R + 1) * (R + 2) // 2


def simulate(likelihood="negative_binomial", n=N, m=M, **options):
    return lfm.datasets.simulate(
        n, m, R, likelihood=likelihood, mu=0.3, factor_scales=[0.8, 0.6], depth_spread=0.3, **options
    )


@pytest.fixture(scope="module")
def data():
    """Counts of 120 cells. Shared: copy before writing into it."""
    return simulate()


def fit(adata, n_factors=R, **options):
    return lfm.tl.fit(adata, n_factors, **{"copy": True, "progress": False} | options)


@pytest.fixture(scope="module")
def plain(data):
    """The fit to them without any option. Shared: copy before writing into it."""
    return fit(data)


@pytest.fixture(scope="module", params=MOST_COUNTS)
def fitted(request):
    adata = simulate(request.param)
    adata.uns["likelihood"] = request.param
    lfm.tl.fit(adata, R, likelihood=request.param, progress=False)
    return adata


def keys_of_fit(adata, key="lfm"):
    """What is stored under a stem."""
    return {
        container: {name for name in getattr(adata, container) if key in str(name).split("_")}
        for container in ("obs", "var", "obsm", "varm", "uns", "layers", "obsp", "varp")
    }


# what is stored


def expected_keys(likelihood, key="lfm"):
    return {
        "obs": {f"{key}_a", f"{key}_a_sd", f"{key}_size_factor"},
        "var": {f"{key}_b", f"{key}_b_sd"} | ({f"{key}_theta"} if likelihood == "negative_binomial" else set()),
        "obsm": {f"X_{key}", f"X_{key}_sd", f"{key}_cov"},
        "varm": {key, f"{key}_sd", f"{key}_cov"},
        "uns": {key, "lfm_written"},
        "layers": set(),
        "obsp": set(),
        "varp": set(),
    }


def test_stores_float32_fields_of_the_documented_shapes(fitted):
    assert keys_of_fit(fitted) == expected_keys(fitted.uns["likelihood"])
    shapes = {"obs": {(N,)}, "var": {(M,)}, "obsm": {(N, R), (N, PACKED)}, "varm": {(M, R), (M, PACKED)}}
    for container, names in expected_keys(fitted.uns["likelihood"]).items():
        for name in names if container in shapes else ():
            field = np.asarray(getattr(fitted, container)[name])
            assert field.shape in shapes[container]
            assert field.dtype == np.float32, name
            assert np.isfinite(field).all()
    for container, size in (("obsm", N), ("varm", M)):
        assert getattr(fitted, container)["lfm_cov"].shape == (size, PACKED)


def test_what_belongs_to_neither_axis_is_in_uns(fitted):
    uns = fitted.uns["lfm"]
    assert set(uns) == {
        "params",
        "variance_ratio",
        "elbo",
        "converged",
        "seconds",
        "version",
        "total_counts",
        "expected_counts",
        "values",
        "mu",
        "prior_cell_mean",
        "prior_cell_cov",
        "prior_gene_mean",
        "prior_gene_cov",
    }
    for name in ("cell", "gene"):
        assert uns[f"prior_{name}_mean"].shape == (R + 1,)
        assert uns[f"prior_{name}_cov"].shape == (R + 1, R + 1)
        assert uns[f"prior_{name}_cov"].dtype == np.float64
        assert (np.linalg.eigvalsh(uns[f"prior_{name}_cov"]) > 0).all()
    assert isinstance(uns["mu"], float)
    assert uns["total_counts"] == pytest.approx(float(fitted.X.sum()) / N)
    v = np.column_stack([np.ones(M), fitted.varm["lfm"]])
    log_rate = uns["mu"] + fitted.var["lfm_b"] + v @ uns["prior_cell_mean"]
    expected = np.exp(log_rate + np.einsum("jk,kl,jl->j", v, uns["prior_cell_cov"], v) / 2).sum()
    assert uns["expected_counts"] == pytest.approx(expected, rel=1e-4)
    assert uns["variance_ratio"].shape == (R,)
    assert uns["variance_ratio"].dtype == np.float32
    assert uns["variance_ratio"].sum() == pytest.approx(1, abs=1e-6)
    assert set(uns["elbo"]) == {"epoch", "value", "rank0"}
    assert len(uns["elbo"]["epoch"]) == len(uns["elbo"]["value"])
    assert uns["elbo"]["value"][-1] > uns["elbo"]["rank0"]
    assert uns["converged"]
    lengths = {np.shape(value) for value in uns.values() if not isinstance(value, dict)}
    assert not any({N, M} & set(shape) for shape in lengths)


def test_params_say_what_was_done(fitted):
    params = fitted.uns["lfm"]["params"]
    assert params["likelihood"] == fitted.uns["likelihood"]
    # all cells of a small data set make one batch
    assert params["batch_size"] == N
    assert params["max_epochs"] == 100
    assert not {"noise", "size_factors", "layer", "mask_var", "prior_scales", "guide"} & set(params)


def test_follows_the_conventions_of_pca(fitted):
    A, B = fitted.obsm["X_lfm"].astype(float), fitted.varm["lfm"].astype(float)
    np.testing.assert_allclose(B.mean(0), 0, atol=1e-6)
    assert abs(fitted.var["lfm_b"].mean()) < 1e-5
    # the last pass moves each cell to its own optimum, after the gauge was chosen
    assert abs(fitted.obs["lfm_a"].mean()) < 0.1 * fitted.obs["lfm_a"].std()
    np.testing.assert_allclose(B.T @ B, np.eye(R), atol=1e-5)
    lengths = np.linalg.norm(A, axis=0)
    assert (np.diff(lengths) < 0).all()
    np.testing.assert_allclose(A.mean(0) / lengths * np.sqrt(N), 0, atol=0.05)
    np.testing.assert_allclose((A / lengths).T @ (A / lengths), np.eye(R), atol=0.05)
    assert (B[np.abs(B).argmax(0), np.arange(R)] > 0).all()
    np.testing.assert_allclose(fitted.uns["lfm"]["variance_ratio"], lengths**2 / (lengths**2).sum(), rtol=1e-5)


def test_standard_deviations_are_those_of_the_stored_covariances(fitted):
    diagonal = [k * (k + 3) // 2 for k in range(R + 1)]
    for packed, margin, factors in (
        (fitted.obsm["lfm_cov"], fitted.obs["lfm_a_sd"], fitted.obsm["X_lfm_sd"]),
        (fitted.varm["lfm_cov"], fitted.var["lfm_b_sd"], fitted.varm["lfm_sd"]),
    ):
        sd = np.sqrt(packed[:, diagonal])
        np.testing.assert_allclose(margin, sd[:, 0], rtol=1e-5)
        np.testing.assert_allclose(factors, sd[:, 1:], rtol=1e-5)
        assert len(np.unique(factors[:, 0])) == len(factors)


def test_deep_cells_and_abundant_genes_are_known_better():
    result = fit(lfm.datasets.simulate(N, M, R, likelihood="poisson", mu=0.3, depth_spread=1.0))
    assert np.corrcoef(np.log(result.obs["lfm_size_factor"]), np.log(result.obsm["X_lfm_sd"][:, 0]))[0, 1] < -0.9
    assert np.corrcoef(result.var["lfm_b"], np.log(result.varm["lfm_sd"][:, 0]))[0, 1] < -0.8


def test_what_the_fit_says_is_near_the_truth(fitted, true_eta):
    adata = fitted.copy()
    lfm.tl.predict(adata, layer_added="expected")
    rate = np.exp(true_eta(adata)) * adata.obs["size_factor"].to_numpy()[:, None]
    expected = adata.layers["expected"]
    if adata.uns["likelihood"] == "bernoulli":
        assert np.corrcoef(expected.ravel(), -np.expm1(-rate.ravel()))[0, 1] > 0.9
    else:
        assert np.corrcoef(np.log(expected.ravel()), np.log(rate.ravel()))[0, 1] > 0.96


# which likelihood


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.half_slow
def test_whole_numbers_are_counts_and_others_are_not(data, form, dtype, caplog):
    values = data.X.toarray().clip(max=200)
    options = {"tol": 1e6, "batch_size": 60}
    with caplog.at_level(logging.INFO, logger="scvi_lfm"):
        result = fit(ad.AnnData(form(values.astype(dtype))), **options)
    assert result.uns["lfm"]["params"]["likelihood"] == "negative_binomial"
    assert "likelihood 'negative_binomial', 120 cells x 60 genes" in caplog.text
    if np.dtype(dtype).kind == "f":
        for other in (np.log1p(values), values - 1):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                result = fit(ad.AnnData(form(other.astype(dtype))), **options)
            assert result.uns["lfm"]["params"]["likelihood"] == "normal"


@pytest.mark.parametrize("given", COUNTS)
def test_a_likelihood_that_is_asked_for_is_taken(given):
    adata = simulate("bernoulli")
    result = fit(adata, likelihood=given, tol=1e6, batch_size=60)
    assert result.uns["lfm"]["params"]["likelihood"] == given


def test_presence_is_fitted_as_counts_where_no_likelihood_is_asked_for():
    result = fit(simulate("bernoulli"), tol=1e6, batch_size=60)
    assert result.uns["lfm"]["params"]["likelihood"] == "negative_binomial"


@pytest.mark.slow
def test_a_fit_with_another_likelihood_leaves_nothing_stale(data):
    """Under one key, in any order; another key keeps what it has."""
    adata = data.copy()
    adata.X = (adata.X > 0).astype(np.float32)
    adata.obs["batch"], adata.var["length"] = "one", 1.0
    before = {name: set(getattr(adata, name)) for name in ("obs", "var", "obsm", "varm", "uns")}
    lfm.tl.fit(adata, R, key_added="other", progress=False)
    other = {name: set(getattr(adata, name)) - before[name] for name in before}
    normal = {
        "obs": {"lfm_a", "lfm_a_sd"},
        "var": {"lfm_b", "lfm_b_sd", "lfm_sigma"},
        "obsm": {"X_lfm", "X_lfm_sd"},
        "varm": {"lfm", "lfm_sd"},
        "uns": {"lfm"},
    }
    for likelihood in ("normal", "negative_binomial", "bernoulli", "normal", "poisson", "negative_binomial", "poisson"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*holds whole numbers")
            warnings.filterwarnings("ignore", message=".*did not converge")
            lfm.tl.fit(adata, R, likelihood=likelihood, max_epochs=3, progress=False)
        stored = normal if likelihood == "normal" else expected_keys(likelihood)
        for name, already in before.items():
            assert set(getattr(adata, name)) == already | other[name] | stored[name], (likelihood, name)
        assert ("total_counts" in adata.uns["lfm"]) == (likelihood != "normal")
        assert ("cell_cov" in adata.uns["lfm"]) == (likelihood == "normal")
        lfm.tl.predict(adata, obs_names="cell_1", var_names="gene_1")
    lfm.tl.predict(adata, obs_names="cell_1", var_names="gene_1", key="other")


# what is read


A_FEW_EPOCHS = {"batch_size": 60, "max_epochs": 4, "tol": 0.05}


@pytest.fixture(scope="module")
def after_a_few_epochs(data):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*did not converge")
        return fit(data, **A_FEW_EPOCHS)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (np.asarray, np.float64),
        pytest.param(np.asfortranarray, np.int32, marks=pytest.mark.slow),
        pytest.param(sp.csc_matrix, np.float64, marks=pytest.mark.slow),
        (sp.csr_array, np.uint16),
        (sp.csc_array, np.int32),
    ],
)
def test_neither_form_nor_dtype_of_the_matrix_matters(data, after_a_few_epochs, form, dtype):
    adata, expected = ad.AnnData(form(data.X.toarray().astype(dtype)), obs=data.obs, var=data.var), after_a_few_epochs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*did not converge")
        result = fit(adata, **A_FEW_EPOCHS)
    distance = np.abs(result.obsm["X_lfm"] - expected.obsm["X_lfm"]) / expected.obsm["X_lfm_sd"]
    assert distance.max() < 0.05
    assert type(result.X) is type(adata.X)
    assert result.X.dtype == dtype


def test_totals_are_those_of_the_genes_that_are_fitted(data):
    mask = np.arange(M) % 4 > 0
    result, subset = fit(data, mask_var=mask), fit(data[:, mask].copy())
    np.testing.assert_array_equal(result.obs["lfm_size_factor"], subset.obs["lfm_size_factor"])
    assert result.uns["lfm"]["total_counts"] == subset.uns["lfm"]["total_counts"]


# size factors


def test_size_factors_are_totals_over_their_mean(data, plain):
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(plain.obs["lfm_size_factor"], totals / totals.mean(), rtol=1e-6)


def test_size_factors_can_be_given(data, true_eta):
    adata = data.copy()
    size = np.linspace(0.5, 2, N)
    adata.obs["depth"] = size
    column, array, series, whole = (
        fit(adata, size_factors=given) for given in ("depth", size, adata.obs["depth"], 2 * np.ones(N, dtype=int))
    )
    assert column.uns["lfm"]["params"]["size_factors"] == "depth"
    assert array.uns["lfm"]["params"]["size_factors"] == "array"
    for result in (column, array, series):
        np.testing.assert_allclose(result.obs["lfm_size_factor"], size, rtol=1e-6)
        assert "total_counts" not in result.uns["lfm"]
        assert same_fit(result, column)
    np.testing.assert_array_equal(whole.obs["lfm_size_factor"], 2)
    # activity makes up for what size factors leave out
    margin = true_eta(data).mean(1) + np.log(data.obs["size_factor"])
    assert np.corrcoef(whole.obs["lfm_a"], margin)[0, 1] > 0.8


def test_cells_without_counts_can_be_fitted_where_size_factors_are_given(data):
    adata = data.copy()
    values = adata.X.toarray()
    values[[3, 8]] = 0
    adata.X = sp.csr_matrix(values)
    result = fit(adata, size_factors=np.ones(N))
    assert np.isfinite(result.obsm["X_lfm"]).all()
    # seen at some depth and found empty: less active than any other
    assert set(result.obs["lfm_a"].nsmallest(2).index) == {"cell_3", "cell_8"}


# options


def test_mean_field_has_no_covariance_in_a_cell(data, plain):
    result = fit(data, family="mean_field")
    off = [1, 3, 4]
    assert not result.obsm["lfm_cov"][:, off].any()
    assert plain.obsm["lfm_cov"][:, off].any(axis=0).all()
    # each is surer of itself than it should be
    assert np.mean(np.log(result.obsm["X_lfm_sd"] / plain.obsm["X_lfm_sd"])) < -0.02


def test_factors_that_are_off_are_zero_everywhere():
    adata = ad.AnnData(np.random.default_rng(3).poisson(1.0, (100, 60)).astype(np.float32))
    adata.obs_names = "c" + adata.obs_names
    result = fit(adata, 4)
    for field in (result.obsm["X_lfm"], result.obsm["X_lfm_sd"], result.varm["lfm"], result.varm["lfm_sd"]):
        assert field.shape[1] == 4
        assert not field.any()
    assert not result.uns["lfm"]["variance_ratio"].any()
    for packed in (result.obsm["lfm_cov"], result.varm["lfm_cov"]):
        assert packed.shape[1] == 15
        assert (packed[:, 0] > 0).all()
        assert not packed[:, 1:].any()
    assert len(lfm.get.factors_df(result)) == 0
    lfm.tl.rank_genes(result, mask_obs=np.arange(100) < 9)
    assert not lfm.tl.sample_posterior(result, 2)["A"].any()
    assert len(lfm.tl.predict(result, obs_names="c3", var_names=["5", "6"])) == 2
    new = lfm.tl.project(ad.AnnData(adata.X[:20]), result, copy=True)
    np.testing.assert_allclose(new.obs["lfm_a"], result.obs["lfm_a"][:20], atol=0.01)


def test_genes_without_counts_are_fitted_and_named(data):
    values = data.X.toarray()
    values[:, [5, 9]] = 0
    adata = ad.AnnData(values)
    with pytest.warns(UserWarning, match=r"2 gene\(s\) of X are all zero; they are fitted and get B near zero"):
        result = fit(adata)
    others = np.setdiff1d(np.arange(M), [5, 9])
    b = result.var["lfm_b"].to_numpy()
    assert b[[5, 9]].max() < b[others].min()
    assert np.linalg.norm(result.varm["lfm"], axis=1)[[5, 9]].max() < 0.1
