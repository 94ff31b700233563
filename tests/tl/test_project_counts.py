"""`tl.project` with count likelihoods."""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.inference.counts.projection import ENOUGH

N, M, R = 150, 80, 3

# standard deviations between two ends of a cell, each so many nats from where both would be
CLOSE = 2 * (2 * ENOUGH) ** 0.5

CASES = {
    "default": {},
    "poisson": {"likelihood": "poisson"},
    "bernoulli": {"likelihood": "bernoulli"},
    "mean field": {"family": "mean_field"},
    "minibatches": {"batch_size": 40},
    "genes left out": {"mask_var": np.arange(M) % 5 > 0},
    "more factors than needed": {"n_factors": 7},
    "column of size factors": {"size_factors": "depth"},
    "layer": {"layer": "counts"},
}


def simulate(likelihood="negative_binomial", n=N, **options):
    adata = lfm.datasets.simulate(
        n, M, R, likelihood=likelihood, mu=0.5, factor_scales=[0.8, 0.6, 0.4], depth_spread=0.3, **options
    )
    adata.obs["depth"] = np.linspace(0.5, 2, n)
    adata.layers["counts"] = adata.X
    return adata


def fit(adata, n_factors=R, **options):
    lfm.tl.fit(adata, n_factors, progress=False, **options)
    return adata


def without_fit(adata):
    """The cells and genes alone."""
    return ad.AnnData(
        adata.X, obs=adata.obs[["depth"]], var=adata.var[["b"]], layers={"counts": adata.layers["counts"]}
    )


def distance(one, other):
    """Largest distance of a cell's (a, A), in standard deviations; factors that are off agree."""
    parts = [np.abs(one.obs["lfm_a"] - other.obs["lfm_a"]) / other.obs["lfm_a_sd"]]
    sd = other.obsm["X_lfm_sd"]
    on = (sd > 0).all(axis=0)
    assert not one.obsm["X_lfm"][:, ~on].any()
    parts += list((np.abs(one.obsm["X_lfm"] - other.obsm["X_lfm"])[:, on] / sd[:, on]).T)
    return float(np.max(parts))


@pytest.fixture(scope="module")
def reference_of():
    """150 cells, fitted as a case says. Shared: copy before writing into it."""

    @cache
    def made(case):
        options = CASES[case]
        return fit(simulate(options.get("likelihood", "negative_binomial")), **{"n_factors": R, **options})

    return made


@pytest.fixture(scope="module")
def reference(reference_of):
    """150 cells of a negative binomial, fitted. Shared: copy before writing into it."""
    return reference_of("default")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.half_slow
def test_agrees_with_the_fit_on_its_own_cells(reference_of, case):
    reference = reference_of(case)
    new = without_fit(reference)
    lfm.tl.project(new, reference)
    assert distance(new, reference) < CLOSE
    np.testing.assert_allclose(new.obs["lfm_size_factor"], reference.obs["lfm_size_factor"], rtol=1e-5)
    np.testing.assert_allclose(new.obsm["X_lfm_sd"], reference.obsm["X_lfm_sd"], rtol=0.01)
    np.testing.assert_allclose(new.obs["lfm_a_sd"], reference.obs["lfm_a_sd"], rtol=0.01)
    scale = np.abs(reference.obsm["lfm_cov"]).max()
    np.testing.assert_allclose(new.obsm["lfm_cov"], reference.obsm["lfm_cov"], atol=0.01 * scale)
    for name in ("lfm", "lfm_sd", "lfm_cov"):
        np.testing.assert_allclose(new.varm[name], reference.varm[name], rtol=1e-6, atol=1e-9)
    for name in [name for name in ("lfm_b", "lfm_b_sd", "lfm_theta") if name in reference.var]:
        np.testing.assert_allclose(new.var[name], reference.var[name], rtol=1e-6)
    assert ("lfm_theta" in new.var) == ("lfm_theta" in reference.var)
    assert set(new.uns["lfm"]) == set(reference.uns["lfm"])
    assert new.uns["lfm"]["mu"] == reference.uns["lfm"]["mu"]


@pytest.mark.parametrize("form", [np.asarray, sp.csc_matrix, sp.csr_array])
def test_some_cells_and_genes_in_another_order_and_form(reference, form):
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(N)[:40], rng.permutation(M)
    new = without_fit(reference)[rows][:, columns].copy()
    new.X = form(new.X.toarray().astype(np.int64))
    lfm.tl.project(new, reference)
    assert distance(new, reference[rows]) < 0.02
    np.testing.assert_array_equal(new.varm["lfm"], reference.varm["lfm"][columns])
    np.testing.assert_array_equal(new.var["lfm_theta"], reference.var["lfm_theta"].iloc[columns])
    np.testing.assert_allclose(new.obs["lfm_size_factor"], reference.obs["lfm_size_factor"].iloc[rows], rtol=1e-5)


def test_the_company_of_a_cell_does_not_matter(reference):
    """Size factors are on the scale of the reference, not of the new cells."""
    deep = np.argsort(reference.obs["lfm_size_factor"].to_numpy())[-20:]
    new = without_fit(reference)[deep].copy()
    lfm.tl.project(new, reference)
    np.testing.assert_allclose(new.obs["lfm_size_factor"], reference.obs["lfm_size_factor"].iloc[deep], rtol=1e-5)
    assert new.obs["lfm_size_factor"].mean() > 1.1
    assert distance(new, reference[deep]) < 0.02


@pytest.mark.parametrize("n_genes", [60, 25])
def test_absent_genes_are_unobserved(reference, n_genes):
    known = np.sort(np.random.default_rng(1).choice(M, n_genes, replace=False))
    new = without_fit(reference)[:, known].copy()
    message = f"{M - n_genes} of {M} fitted genes are absent from `adata` and taken as unobserved"
    with pytest.warns(UserWarning, match=message):
        lfm.tl.project(new, reference)
    np.testing.assert_array_equal(new.varm["lfm"], reference.varm["lfm"][known])
    # totals are compared with the expected share of the reference's total that these genes have
    uns, v = reference.uns["lfm"], np.column_stack([np.ones(M), reference.varm["lfm"]])
    log_rate = reference.var["lfm_b"].to_numpy() + v @ uns["prior_cell_mean"]
    expected = np.exp(log_rate + np.einsum("jk,kl,jl->j", v, uns["prior_cell_cov"], v) / 2)
    share = expected[known].sum() / expected.sum()
    totals = np.asarray(new.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(new.obs["lfm_size_factor"], totals / (share * uns["total_counts"]), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.* fitted genes are absent")
@pytest.mark.parametrize("n_genes", [60, 25])
def test_fewer_genes_say_less_and_the_same(reference, n_genes):
    known = np.sort(np.random.default_rng(1).choice(M, n_genes, replace=False))
    new = without_fit(reference)[:, known].copy()
    lfm.tl.project(new, reference, size_factors=reference.obs["lfm_size_factor"].to_numpy())
    sd = new.obsm["X_lfm_sd"]
    # measured over seeds: 1.04 at the least and 1.12 on average with three genes in four
    assert (sd > 0.98 * reference.obsm["X_lfm_sd"]).all()
    assert sd.mean() > 1.05 * reference.obsm["X_lfm_sd"].mean()
    # of a difference between what a part and the whole say, the variance is at most that of the part
    z = (new.obsm["X_lfm"] - reference.obsm["X_lfm"]) / sd
    assert np.sqrt(np.mean(z**2)) < 1.2


def test_a_reference_may_lose_genes_after_its_fit(reference):
    """Size factors stay on the scale of all genes that were fitted."""
    known = np.arange(0, M, 2)
    new = without_fit(reference)[:, known].copy()
    lfm.tl.project(new, reference[:, known].copy())
    ratio = np.log(new.obs["lfm_size_factor"] / reference.obs["lfm_size_factor"])
    assert abs(ratio.mean()) < 0.15
    with pytest.warns(UserWarning, match="are absent from `adata`"):
        lfm.tl.project(whole := without_fit(reference)[:, known].copy(), reference)
    np.testing.assert_allclose(new.obs["lfm_size_factor"], whole.obs["lfm_size_factor"], rtol=1e-5)


def test_a_step_from_the_prior_is_not_trusted():
    """One of these cells has next to nothing to gain after it, and is not there."""
    reference = fit(simulate(rng=7))
    assert distance(lfm.tl.project(without_fit(reference), reference, copy=True), reference) < CLOSE


def test_genes_that_the_reference_does_not_know_are_missing(reference):
    part = fit(simulate()[:, :60].copy())
    new = without_fit(reference)
    lfm.tl.project(new, part)
    assert distance(new, part) < CLOSE
    for name in ("lfm", "lfm_sd", "lfm_cov"):
        assert np.isnan(new.varm[name][60:]).all()
        assert np.isfinite(new.varm[name][:60]).all()
    assert np.isnan(new.var["lfm_theta"].iloc[60:]).all()
    lfm.tl.rank_genes(new, mask_obs=np.arange(N) < 40)
    assert set(new.uns["rank_genes_lfm"]["names"]["selected"]) == set(part.var_names)


def test_new_cells_are_as_well_placed_as_those_of_the_fit():
    adata = simulate("poisson", 300)
    reference, new = adata[:150].copy(), adata[150:].copy()
    fit(reference, likelihood="poisson")
    lfm.tl.project(new, reference)
    truth = adata.obsm["A"] @ (adata.varm["B"] - adata.varm["B"].mean(0)).T
    error = [
        np.sqrt(np.mean((part.obsm["X_lfm"] @ part.varm["lfm"].T - (half - truth[:150].mean(0))) ** 2))
        for part, half in ((reference, truth[:150]), (new, truth[150:]))
    ]
    assert error[1] < 1.25 * error[0]


# size factors


def test_given_size_factors_are_taken(reference):
    size = np.linspace(0.3, 3, N)
    new = without_fit(reference)
    new.obs["depth"] = size
    for given in (size, "depth", new.obs["depth"]):
        result = lfm.tl.project(new, reference, size_factors=given, copy=True)
        np.testing.assert_allclose(result.obs["lfm_size_factor"], size, rtol=1e-6)
    own = reference.obs["lfm_size_factor"].to_numpy()
    assert distance(lfm.tl.project(new, reference, size_factors=own, copy=True), reference) < CLOSE


def test_a_column_that_the_fit_took_is_taken_again(reference_of):
    reference = reference_of("column of size factors")
    new = without_fit(reference)
    new.obs["depth"] = 2 * new.obs["depth"]
    result = lfm.tl.project(new, reference, copy=True)
    np.testing.assert_allclose(result.obs["lfm_size_factor"], new.obs["depth"], rtol=1e-6)
    # twice the depth for the same counts: half the activity, as far as it is free
    assert ((result.obs["lfm_a"] - reference.obs["lfm_a"]) < -0.2).all()
    del new.obs["depth"]
    with pytest.raises(KeyError, match="`size_factors`: obs has no column 'depth'"):
        lfm.tl.project(new, reference)
    assert "lfm" not in new.uns


def test_an_array_that_the_fit_was_given_must_be_given_again():
    reference = fit(simulate(), size_factors=np.linspace(0.5, 2, N))
    new = without_fit(reference)
    with pytest.raises(ValueError, match="fitted with size factors of its own: pass those of the new cells as size_f"):
        lfm.tl.project(new, reference)
    assert "lfm" not in new.uns
    lfm.tl.project(new, reference, size_factors=np.linspace(0.5, 2, N))
    assert distance(new, reference) < CLOSE


def test_a_normal_reference_has_none():
    reference = lfm.datasets.simulate(40, 30, 2)
    fit(reference, 2)
    with pytest.raises(ValueError, match="`size_factors` belong to count likelihoods, and the reference was fitted wi"):
        lfm.tl.project(reference.copy(), reference, size_factors=np.ones(40), key_added="new")


def test_a_cell_without_counts_needs_one(reference):
    new = without_fit(reference)
    values = new.X.toarray()
    values[[4, 9]] = 0
    new.X = values
    with pytest.raises(ValueError, match=r"2 cell\(s\) have no counts, first 'cell_4', and so no size factor"):
        lfm.tl.project(new, reference)
    assert "lfm" not in new.uns
    lfm.tl.project(new, reference, size_factors=np.ones(N))
    assert np.isfinite(new.obsm["X_lfm"]).all()


# values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: np.log1p(values), "that are not whole numbers"),
        (lambda values: values - 1, "that are negative"),
    ],
)
def test_new_cells_must_hold_counts(reference, change, message):
    new = without_fit(reference)
    new.X = change(new.X.toarray())
    with pytest.raises(ValueError, match=message):
        lfm.tl.project(new, reference)
    assert "lfm" not in new.uns


def test_new_cells_of_a_bernoulli_reference_must_be_binary(reference_of):
    reference = reference_of("bernoulli")
    new = without_fit(reference)
    new.X = 2 * new.X
    with pytest.raises(ValueError, match=r"that are above 1; .* Binarise them first"):
        lfm.tl.project(new, reference)


def test_the_layer_of_the_fit_is_read(reference_of):
    reference = reference_of("layer")
    new = without_fit(reference)
    new.X = np.log1p(new.X.toarray())
    lfm.tl.project(new, reference)
    assert distance(new, reference) < CLOSE
    del new.layers["counts"]
    with pytest.raises(KeyError, match=r"The fit read layers\['counts'\], which `adata` does not have"):
        lfm.tl.project(new, reference)


# the result


def test_every_tool_works_on_the_result():
    adata = simulate()
    reference, new = adata[:100].copy(), adata[100:].copy()
    lfm.tl.fit(reference, R, progress=False, key_added="ref")
    lfm.tl.project(new, reference, key="ref", key_added="mine")
    assert "mine_size_factor" in new.obs
    lfm.tl.rank_genes(new, mask_obs=new.obs["depth"].to_numpy() > 1.7, key="mine")
    lfm.tl.rank_cells(new, "gene_1", key="mine")
    assert len(lfm.tl.similar_genes(new, "gene_1", key="mine")) == 20
    expected = lfm.tl.predict(new, obs_names=list(new.obs_names), var_names=list(new.var_names), key="mine")
    assert np.corrcoef(np.log(expected["expected"]), np.log1p(new.X.toarray().ravel()))[0, 1] > 0.7
    assert lfm.tl.sample_posterior(new, 2, key="mine")["A"].shape == (2, 50, R)


def test_a_projection_is_a_reference_in_its_turn(reference):
    first = without_fit(reference)[:80].copy()
    lfm.tl.project(first, reference)
    second = without_fit(reference)[80:].copy()
    lfm.tl.project(second, first)
    assert distance(second, reference[80:]) < CLOSE
    np.testing.assert_allclose(second.obs["lfm_size_factor"], reference.obs["lfm_size_factor"].iloc[80:], rtol=1e-5)


def test_nothing_is_shared_with_the_reference(reference):
    new = lfm.tl.project(without_fit(reference), reference, copy=True)
    new.uns["lfm"]["params"]["n_factors"] = -1
    new.uns["lfm"]["variance_ratio"][:] = -1
    new.varm["lfm_cov"][:] = -1
    assert reference.uns["lfm"]["params"]["n_factors"] == R
    assert (reference.uns["lfm"]["variance_ratio"] >= 0).all()
    assert (reference.varm["lfm_cov"][:, 0] > 0).all()


def test_projecting_leaves_nothing_stale_of_another_likelihood(reference):
    normal = lfm.datasets.simulate(60, M, 2)
    fit(normal, 2)
    new = without_fit(reference)[:60].copy()
    lfm.tl.project(new, reference)
    new.layers["counts"], new.X = new.X, normal.X
    lfm.tl.project(new, normal)
    assert "lfm_sigma" in new.var
    assert not {"lfm_theta"} & set(new.var)
    assert not {"lfm_cov"} & {*new.obsm, *new.varm}
    assert "lfm_size_factor" not in new.obs
    assert "total_counts" not in new.uns["lfm"]
    new.X = new.layers["counts"]
    lfm.tl.project(new, reference)
    assert "lfm_sigma" not in new.var
    assert {"lfm_theta", "lfm_b"} < set(new.var)
    assert not {"sigma", "cell_cov", "gene_basis", "gene_eig"} & set(new.uns["lfm"])
