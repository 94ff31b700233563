"""`tl.fit(observed=..., held_out=...)` and every tool on such fits."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm

N, M, R = 300, 120, 3


def ratings(n=N, m=M, r=R, share=0.4, sigma=0.5, seed=0, shift=3.0):
    """Values of a share of the entries stored; eta beside them in uns."""
    full = lfm.datasets.simulate(n, m, r, mu=shift, sigma=sigma, rng=seed)
    rng = np.random.default_rng(seed + 100)
    seen = rng.random((n, m)) < share
    rows, columns = np.nonzero(seen)
    stored = sp.csr_matrix((np.asarray(full.X)[rows, columns], (rows, columns)), shape=(n, m))
    adata = ad.AnnData(stored, obs=full.obs[[]], var=full.var[[]])
    adata.uns["eta"] = (
        full.uns["mu"]
        + full.obs["a"].to_numpy()[:, None]
        + full.var["b"].to_numpy()
        + full.obsm["A"] @ full.varm["B"].T
    )
    adata.uns["full"] = np.asarray(full.X)
    return adata


def mask_of(adata, share, seed=0, *, zeros=False):
    """A share of the stored entries, and if asked as many that are not stored."""
    stored = adata.X.tocoo()
    rng = np.random.default_rng(seed)
    chosen = rng.random(stored.nnz) < share
    mask = np.zeros(adata.shape, dtype=bool)
    mask[stored.row[chosen], stored.col[chosen]] = True
    if zeros:
        row, column = np.nonzero(adata.X.toarray() == 0)
        some = rng.permutation(len(row))[: int(chosen.sum())]
        mask[row[some], column[some]] = True
    return sp.csr_matrix(mask)


@pytest.fixture(scope="module")
def rated():
    """Ratings with 10 % held out, fitted. Copy before writing."""
    adata = ratings()
    adata.layers["test"] = mask_of(adata, 0.1)
    lfm.tl.fit(adata, 6, observed="stored", held_out="test", progress=False)
    return adata


def eta_of(adata):
    return (
        adata.uns["lfm"]["mu"]
        + adata.obs["lfm_a"].to_numpy()[:, None]
        + adata.var["lfm_b"].to_numpy()
        + adata.obsm["X_lfm"] @ adata.varm["lfm"].T
    )


def test_unseen_entries_are_predicted(rated):
    assert rated.uns["lfm"]["params"]["likelihood"] == "normal"
    unseen = rated.X.toarray() == 0
    error = (eta_of(rated) - rated.uns["eta"])[unseen]
    margins = lfm.tl.fit(rated, 0, observed="stored", held_out="test", copy=True, progress=False)
    assert np.sqrt((error**2).mean()) < 0.35 * np.sqrt(((eta_of(margins) - rated.uns["eta"])[unseen] ** 2).mean())
    trace = rated.uns["lfm"]["held_out"]
    held = rated.layers["test"].toarray()
    rmse = np.sqrt(((eta_of(rated) - rated.uns["full"])[held] ** 2).mean())
    assert trace["rmse"][-1] == pytest.approx(rmse, rel=1e-4)
    assert rmse < 0.65
    table = lfm.get.elbo_df(rated)
    assert table["held_out_rmse"].iloc[-1] == trace["rmse"][-1]
    assert table["held_out_log_density"].iloc[-1] > table["held_out_log_density"].max() - 1e-3
    assert table["held_out_log_density"].iloc[-1] > margins.uns["lfm"]["held_out"]["log_density"][-1] + 0.1


def test_intervals_of_unseen_entries_cover(rated):
    row, column = np.nonzero(rated.layers["test"].toarray())
    names = {"obs_names": list(rated.obs_names[row]), "var_names": list(rated.var_names[column])}
    table = lfm.tl.predict(rated, **names, pairs=True)
    sigma = rated.var["lfm_sigma"].to_numpy()[column]
    z = (rated.uns["full"][row, column] - table["expected"]) / np.hypot(table["sd"], sigma)
    assert 0.87 < (np.abs(z) < 1.645).mean() < 0.93


@pytest.mark.parametrize("observed", ["all", "stored"])
@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial"])
@pytest.mark.half_slow
def test_held_out_values_are_never_looked_at(observed, likelihood):
    adata = lfm.datasets.simulate(120, 60, 2, likelihood=likelihood, mu=1.5)
    adata.X = sp.csr_matrix(adata.X)
    mask = mask_of(adata, 0.1, zeros=observed == "all")
    fits = []
    for changed in (False, True):
        one = adata.copy()
        if changed:
            row, column = np.nonzero(mask.toarray() & (one.X.toarray() != 0))
            # not by so much that the fit stops because they are predicted worse and worse
            one.X[row, column] = 1.1 * one.X[row, column] if likelihood == "normal" else 7.0
        options = {} if likelihood == "normal" else {"size_factors": np.ones(120)}
        lfm.tl.fit(one, 2, likelihood=likelihood, observed=observed, held_out=mask, progress=False, **options)
        fits.append(one)
    np.testing.assert_array_equal(fits[0].obsm["X_lfm"], fits[1].obsm["X_lfm"])
    np.testing.assert_array_equal(fits[0].varm["lfm_cov"], fits[1].varm["lfm_cov"])
    assert fits[0].uns["lfm"]["held_out"]["rmse"][-1] != fits[1].uns["lfm"]["held_out"]["rmse"][-1]


# whether 200 epochs reach so small a tolerance is up to rounding, and so near to the end it makes no difference
@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize("likelihood", ["normal", "poisson", "negative_binomial"])
@pytest.mark.parametrize("family", ["row_block", pytest.param("mean_field", marks=pytest.mark.slow)])
@pytest.mark.half_slow
def test_where_every_entry_is_stored_it_is_the_fit_of_all(likelihood, family):
    adata = lfm.datasets.simulate(150, 80, 2, likelihood=likelihood, mu=1.5)
    dense = adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)
    row, column = np.indices(dense.shape).reshape(2, -1)
    whole = adata.copy()
    whole.X = sp.csr_matrix((dense.ravel(), (row, column)), shape=dense.shape)  # zeros stored too
    options = {"likelihood": likelihood, "family": family, "tol": 1e-5, "max_epochs": 200, "progress": False}
    if likelihood == "normal":
        options["noise"] = "shared"
    lfm.tl.fit(adata, 2, **options)
    lfm.tl.fit(whole, 2, observed="stored", **options)
    exact = likelihood == "normal"
    np.testing.assert_allclose(eta_of(whole), eta_of(adata), atol=0.02 if exact else 0.05)
    np.testing.assert_allclose(whole.obsm["X_lfm_sd"], adata.obsm["X_lfm_sd"], rtol=0.02 if exact else 0.1)
    found, wanted = (one.uns["lfm"]["elbo"]["value"][-1] for one in (whole, adata))
    assert found == pytest.approx(wanted, abs=1e-3 if exact else 0.02)


@pytest.mark.parametrize("likelihood", ["normal", pytest.param("poisson", marks=pytest.mark.slow)])
def test_minibatches_come_to_the_same(likelihood):
    adata = lfm.datasets.simulate(600, 80, 2, likelihood=likelihood, mu=1.5, rng=1)
    adata.X = sp.csr_matrix(adata.X)
    mask = mask_of(adata, 0.1, zeros=True)
    fits = []
    for size in (600, 100):
        fits.append(lfm.tl.fit(adata, 2, held_out=mask, batch_size=size, tol=1e-3, progress=False, copy=True))
    eta = [eta_of(one) for one in fits]
    spread = eta[0].std()
    assert np.sqrt(((eta[0] - eta[1]) ** 2).mean()) < 0.1 * spread
    rmse = [one.uns["lfm"]["held_out"]["rmse"][-1] for one in fits]
    assert rmse[1] == pytest.approx(rmse[0], rel=0.03)


def test_counts_held_out_are_predicted():
    adata = lfm.datasets.simulate(400, 150, 3, likelihood="negative_binomial", mu=0.5, rng=2)
    adata.X = sp.csr_matrix(adata.X)
    adata.layers["test"] = mask_of(adata, 0.1, zeros=True)
    lfm.tl.fit(adata, 3, held_out="test", progress=False)
    margins = lfm.tl.fit(adata, 0, held_out="test", progress=False, copy=True)
    density = [one.uns["lfm"]["held_out"]["log_density"][-1] for one in (margins, adata)]
    assert density[1] > density[0] + 0.01
    truth = lfm.tl.fit(adata, 3, progress=False, copy=True)
    correlation = np.corrcoef(eta_of(adata).ravel(), eta_of(truth).ravel())[0, 1]
    assert correlation > 0.95


@pytest.mark.slow
def test_the_number_of_factors_by_held_out_entries():
    adata = ratings(400, 150, 3, share=0.5)
    adata.layers["test"] = mask_of(adata, 0.1)
    lfm.tl.fit(adata, "auto", observed="stored", held_out="test", progress=False)
    assert adata.obsm["X_lfm"].shape[1] == 3
    table = lfm.get.rank_df(adata)
    density = table["held_out_log_density"]
    assert density.iloc[:4].is_monotonic_increasing
    assert density.iloc[3] > density.iloc[4:].max() - 0.02
    lfm.pl.rank(adata, show=False)


def test_fits_survive_files_and_slices(rated, tmp_path):
    rated = rated.copy()
    del rated.uns["eta"], rated.uns["full"]
    rated.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    names = {"obs_names": list(rated.obs_names[[3, 200]]), "var_names": list(rated.var_names[[0, 7]])}
    table = lfm.tl.predict(rated, **names)
    for other in (again, again[[3, 200]].copy(), again[:, [0, 7, 9]].copy()):
        pd.testing.assert_frame_equal(lfm.tl.predict(other, **names), table, rtol=1e-5)


def test_every_tool_takes_such_a_fit(rated):
    rated = rated.copy()
    rated.obs["kind"] = np.where(rated.obs["lfm_a"] > 0, "high", "low")
    row, column = (int(place[0]) for place in np.nonzero(rated.X.toarray() * ~rated.layers["test"].toarray()))
    rated.X[row, column] += 20
    lfm.tl.rank_genes(rated, "kind")
    lfm.tl.rank_cells(rated, rated.var_names[:2].tolist())
    lfm.tl.anomalies(rated)
    entries = lfm.get.anomalies_df(rated)
    assert (entries["cell"].iloc[0], entries["gene"].iloc[0]) == (rated.obs_names[row], rated.var_names[column])
    unseen = (rated.X.toarray() == 0) | rated.layers["test"].toarray()
    places = rated.obs_names.get_indexer(entries["cell"]), rated.var_names.get_indexer(entries["gene"])
    assert not unseen[places].any()
    assert len(lfm.tl.similar_genes(rated, rated.var_names[0], n_top=3)) == 3
    drawn = lfm.tl.sample_posterior(rated, 200)
    error = np.abs(drawn["A"].mean(0) - rated.obsm["X_lfm"]) / np.maximum(rated.obsm["X_lfm_sd"], 1e-6)
    assert error.max() < 6 / np.sqrt(200)


def test_calibration_is_of_entries_that_are_data(rated):
    report = lfm.tl.check(rated, refit=False)
    overall = report.calibration.iloc[0]
    assert int(overall["n"]) == int(rated.X.nnz - rated.layers["test"].sum())
    assert 0.87 < overall["coverage"] < 0.93


@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
@pytest.mark.parametrize("observed", ["all", "stored"])
def test_new_rows_are_placed_by_what_they_have(likelihood, observed):
    if likelihood == "normal":
        adata = ratings()
    else:
        adata = lfm.datasets.simulate(N, M, R, likelihood="poisson", mu=1.5)
        adata.X = sp.csr_matrix(adata.X)
    options = {"size_factors": np.ones(N)} if likelihood == "poisson" else {}
    mask = mask_of(adata, 0.05)
    lfm.tl.fit(adata, R, likelihood=likelihood, observed=observed, held_out=mask, progress=False, **options)
    kept = adata.X.toarray()
    kept[mask.toarray()] = 0
    new = ad.AnnData(sp.csr_matrix(kept)[:40], obs=adata.obs.iloc[:40][[]], var=adata.var[[]])
    sizes = {"size_factors": np.ones(40)} if likelihood == "poisson" else {}
    lfm.tl.project(new, adata, **sizes)
    if observed == "stored":  # the held-out entries are left out of both
        np.testing.assert_allclose(new.obsm["X_lfm"], adata.obsm["X_lfm"][:40], atol=5e-3)
        np.testing.assert_allclose(new.obsm["X_lfm_sd"], adata.obsm["X_lfm_sd"][:40], rtol=2e-2)
    else:  # in the new rows they are zeros
        assert np.abs(new.obsm["X_lfm"] - adata.obsm["X_lfm"][:40]).max() > 5e-3
    assert "held_out" not in new.uns["lfm"]["params"]


def test_rows_and_columns_without_a_value_get_their_prior():
    adata = ratings()
    values = adata.X.tolil()
    values[4], values[:, 9] = 0, 0
    adata.X = values.tocsr()
    adata.X.eliminate_zeros()
    with (
        pytest.warns(UserWarning, match=r"1 cell\(s\) of X have no observed value, first 'cell_4'"),
        pytest.warns(UserWarning, match=r"1 gene\(s\) of X have no observed value, first 'gene_9'"),
    ):
        lfm.tl.fit(adata, R, observed="stored", progress=False)
    prior = np.sqrt(adata.uns["lfm"]["prior_cell_cov"].diagonal())
    assert adata.obs["lfm_a_sd"].iloc[4] == pytest.approx(prior[0], rel=1e-3)
    np.testing.assert_allclose(adata.obsm["X_lfm_sd"][4], prior[1:], rtol=1e-3)
    assert np.isfinite(adata.varm["lfm"]).all()


def test_noise_of_each_gene_is_stable_with_one_value():
    adata = ratings()
    values = adata.X.tolil()
    values[1:, 9] = 0
    values[0, 9] = 3.0
    adata.X = values.tocsr()
    adata.X.eliminate_zeros()
    lfm.tl.fit(adata, R, observed="stored", noise="gene", progress=False)
    sigma = adata.var["lfm_sigma"].to_numpy()
    assert 0.3 < sigma[9] / np.median(sigma) < 3


def test_it_stops_when_held_out_entries_get_worse(monkeypatch):
    from scvi_lfm.inference import loop

    adata = ratings()
    densities = iter([-1.0, -0.9, -0.95, -0.97, -0.98])
    real = loop.ObservedEngine.held_out

    def worse(self, state):
        score = real(self, state)
        return replace(score, log_density=torch.tensor(next(densities)), n=1)

    monkeypatch.setattr(loop.ObservedEngine, "held_out", worse)
    lfm.tl.fit(adata, R, observed="stored", held_out=mask_of(adata, 0.1), tol=1e-9, max_epochs=5, progress=False)
    trace = adata.uns["lfm"]["held_out"]
    assert trace["stopped"]
    assert trace["epoch"].tolist() == [1, 2, 3, 4, 4]


MASK = sp.csr_matrix(np.eye(N, M, dtype=bool))
WRONG = {
    "no layer": ({"held_out": "tset"}, KeyError, r"no layer 'tset'. Did you mean 'test'"),
    "dense": ({"held_out": MASK.toarray()}, TypeError, "sparse boolean matrix, found ndarray"),
    "dtype": ({"held_out": MASK.astype(np.float32)}, TypeError, "must be boolean, found dtype float32"),
    "shape": ({"held_out": MASK[:-1]}, ValueError, r"has shape \(299, 120\), but `adata` has \(300, 120\)"),
    "nothing": ({"held_out": sp.csr_matrix((N, M), dtype=bool)}, ValueError, "holds out nothing"),
    "everything": ({"held_out": sp.csr_matrix(np.ones((N, M), dtype=bool))}, ValueError, "holds out everything"),
    "all that is stored": ({"observed": "stored", "held_out": "all"}, ValueError, "holds out every stored entry"),
    "none that is stored": ({"observed": "stored", "held_out": "none"}, ValueError, "holds out no stored entry"),
    "observed": ({"observed": "some"}, ValueError, "`observed` must be one of 'all', 'stored', found 'some'"),
    "pyro": ({"observed": "stored", "engine": "pyro"}, ValueError, "`observed`='stored' belongs to engine='natural_g"),
    "cell noise": ({"held_out": MASK, "noise": "cell_gene"}, ValueError, "does not go with noise='cell_gene'"),
    "covariates": ({"held_out": MASK, "covariates": "batch"}, ValueError, "does not go with `covariates`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name):
    options, error, words = WRONG[name]
    adata = ratings()
    adata.obs["batch"] = np.repeat(["one", "two"], N // 2)
    stored = adata.X.toarray() != 0
    adata.layers["test"], adata.layers["all"], adata.layers["none"] = (
        MASK,
        sp.csr_matrix(stored),
        sp.csr_matrix(~stored),
    )
    before = set(adata.uns), set(adata.obsm)
    with pytest.raises(error, match=words):
        lfm.tl.fit(adata, R, progress=False, **options)
    assert (set(adata.uns), set(adata.obsm)) == before


@pytest.mark.parametrize(("value", "words"), [(2.5, "not whole numbers"), (-3, "negative")])
def test_counts_held_out_are_counts(value, words):
    adata = lfm.datasets.simulate(60, 40, 2, likelihood="poisson", mu=1.5)
    adata.X = sp.csr_matrix(adata.X).astype(np.float32)
    adata.X[0, 0] = value
    mask = sp.csr_matrix(([True], ([0], [0])), shape=(60, 40))
    with pytest.raises(ValueError, match=f"{words}; the first is {value}.* in cell 'cell_0', gene 'gene_0'"):
        lfm.tl.fit(adata, 2, likelihood="poisson", held_out=mask, progress=False)


@pytest.mark.filterwarnings("ignore:1 cell.* no observed value")
def test_a_cell_whose_counts_are_all_held_out_has_no_size_factor():
    adata = lfm.datasets.simulate(60, 40, 2, likelihood="poisson", mu=1.5)
    mask = np.zeros((60, 40), dtype=bool)
    mask[7] = True
    with pytest.raises(ValueError, match="1 cell.* have no counts but those held out, first 'cell_7'"):
        lfm.tl.fit(adata, 2, held_out=sp.csr_matrix(mask), progress=False)
    lfm.tl.fit(adata, 2, held_out=sp.csr_matrix(mask), size_factors=np.ones(60), progress=False)
    prior = np.sqrt(adata.uns["lfm"]["prior_cell_cov"].diagonal())
    np.testing.assert_allclose(adata.obsm["X_lfm_sd"][7], prior[1:], rtol=0.02)


def test_dense_values_have_no_unseen_entries():
    adata = lfm.datasets.simulate(30, 20, 2)
    adata.X = np.asarray(adata.X)
    with pytest.raises(ValueError, match="this one is dense"):
        lfm.tl.fit(adata, 2, observed="stored", progress=False)


def test_the_same_value_everywhere():
    adata = ratings()
    adata.X.data[:] = 3
    with pytest.raises(ValueError, match="Every observed value of X is the same"):
        lfm.tl.fit(adata, 2, observed="stored", progress=False)


def test_expression_taken_for_ratings_warns():
    adata = lfm.datasets.simulate(200, 100, 2, likelihood="poisson", mu=-0.5)
    adata.X = sp.csr_matrix(adata.X)
    with pytest.warns(UserWarning, match="observed='all' if they are"):
        lfm.tl.fit(adata, 2, observed="stored", progress=False)


def test_more_covariances_than_may_be_held(monkeypatch):
    monkeypatch.setattr(lfm.settings, "max_cov_bytes", 1000)
    with pytest.raises(ValueError, match=r"covariance of its own; .* settings.max_cov_bytes = 1,000"):
        lfm.tl.fit(ratings(), 2, observed="stored", progress=False)


@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
def test_a_mask_that_is_gone(likelihood):
    adata = lfm.datasets.simulate(80, 40, 2, likelihood=likelihood, mu=1.5)
    adata.X = sp.csr_matrix(adata.X)
    adata.layers["test"] = mask_of(adata, 0.1)
    lfm.tl.fit(adata, 2, held_out="test", progress=False)
    mask = adata.layers.pop("test")
    with pytest.raises(KeyError, match=r"layers\['test'\]"):
        lfm.tl.anomalies(adata)
    unnamed = lfm.tl.fit(adata, 2, held_out=mask, progress=False, copy=True)
    with pytest.raises(KeyError, match="passed as a matrix"):
        lfm.tl.anomalies(unnamed)
    del adata.obsm["lfm_cov"]
    with pytest.raises(KeyError, match="lfm_cov"):
        lfm.tl.predict(adata, obs_names="cell_0", var_names="gene_0")
