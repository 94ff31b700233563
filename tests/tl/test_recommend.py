from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import norm

import scvi_lfm as lfm
from scvi_lfm.tl import _recommend
from triangles import unpacked


@pytest.fixture(scope="module")
def seen(fitted):
    """Which entries of the fitted data are stored, zeros among them."""
    pattern = np.random.default_rng(0).random(fitted.shape) < 0.4
    pattern[3] = True  # a row that has seen all
    pattern[4, :-2] = True  # and one that has seen all but two
    pattern[4, -2:] = False
    return pattern


@pytest.fixture
def ratings(fitted, seen):
    """The fit, beside a matrix that stores part of the entries."""
    adata = fitted.copy()
    rows, columns = seen.nonzero()
    values = adata.X[seen]
    values[::3] = 0
    adata.X = sp.csr_matrix((values, (rows, columns)), shape=adata.shape)
    assert adata.X.nnz == seen.sum()
    return adata


def brute_force(score, seen, n_top):
    """Positions of the best unseen entries, row by row."""
    pairs = []
    for i in range(len(score)):
        free = [j for j in range(score.shape[1]) if not seen[i, j]]
        best = sorted(free, key=lambda j: -score[i, j])[:n_top]
        pairs += [(i, j, rank) for rank, j in enumerate(best, start=1)]
    return pd.DataFrame(pairs, columns=["row", "column", "rank"])


def check(table, adata, expected):
    np.testing.assert_array_equal(adata.obs_names.get_indexer(table["cell"]), expected["row"])
    np.testing.assert_array_equal(adata.var_names.get_indexer(table["gene"]), expected["column"])
    np.testing.assert_array_equal(table["rank"], expected["rank"])


@pytest.mark.parametrize("order", ["expected", "upper"])
def test_the_best_unseen_entries_of_every_row(ratings, seen, order, read_fields, eta_moments, monkeypatch):
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 64 * ratings.n_vars)
    fields = read_fields(ratings)
    mean, var = eta_moments(fields.mu, fields.cells, fields.cell_cov, fields.genes, fields.gene_covs(fields.noise))
    bound = mean + norm.ppf(0.99) * np.sqrt(var)
    table = lfm.tl.recommend(ratings, n_top=5, order=order, level=0.99)
    expected = brute_force(mean if order == "expected" else bound, seen, 5)
    check(table, ratings, expected)
    assert table.columns.tolist() == ["cell", "gene", "rank", "expected", "sd", "upper"]
    at = expected["row"].to_numpy(), expected["column"].to_numpy()
    np.testing.assert_allclose(table["expected"], mean[at], rtol=1e-9)
    np.testing.assert_allclose(table["sd"], np.sqrt(var[at]), rtol=1e-6)
    np.testing.assert_allclose(table["upper"], bound[at], rtol=1e-6)


def test_the_two_orders_differ_and_agree_at_the_median(ratings):
    expected, upper = (lfm.tl.recommend(ratings, order=order, level=0.999) for order in ("expected", "upper"))
    assert (expected["gene"] != upper["gene"]).any()
    pd.testing.assert_frame_equal(
        lfm.tl.recommend(ratings, order="upper", level=0.5), lfm.tl.recommend(ratings, level=0.5)
    )


def test_rows_that_have_seen_all_or_almost_all(ratings):
    table = lfm.tl.recommend(ratings, ["cell_3", "cell_4"])
    assert table["cell"].tolist() == ["cell_4"] * 2
    assert sorted(table["gene"]) == ["gene_78", "gene_79"]
    nothing = lfm.tl.recommend(ratings, "cell_3")
    assert nothing.shape == (0, 6)
    assert nothing.columns.tolist() == table.columns.tolist()


def test_named_rows_come_in_their_order(ratings):
    everyone = lfm.tl.recommend(ratings, n_top=2)
    table = lfm.tl.recommend(ratings, ["cell_100", "cell_7"], 2)
    expected = pd.concat([everyone[everyone["cell"] == name] for name in ("cell_100", "cell_7")], ignore_index=True)
    pd.testing.assert_frame_equal(table, expected)


def test_more_than_there_are(ratings, seen):
    assert len(lfm.tl.recommend(ratings, n_top=500)) == (~seen).sum()


def test_genes_that_were_not_fitted_are_left_out(ratings):
    adata = ratings.copy()
    keep = np.arange(adata.n_vars) % 2 == 0
    lfm.tl.fit(adata, 2, mask_var=keep, progress=False)
    table = lfm.tl.recommend(adata, n_top=100)
    assert set(table["gene"]) == set(adata.var_names[keep])
    stored = set(zip(*(names.tolist() for names in pairs_of(adata)), strict=True))
    assert not stored & set(zip(table["cell"], table["gene"], strict=True))


def pairs_of(adata):
    rows = np.repeat(np.arange(adata.n_obs), np.diff(adata.X.indptr))
    return adata.obs_names[rows], adata.var_names[adata.X.indices]


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "bernoulli"])
@pytest.mark.parametrize("order", ["expected", "upper"])
@pytest.mark.half_slow
def test_counts(likelihood, order):
    adata = lfm.datasets.simulate(60, 30, 2, likelihood=likelihood, mu=0.5)
    lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False)
    every = lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names), quantiles=[])
    expected, sd = (every[name].to_numpy().reshape(adata.shape) for name in ("expected", "sd"))
    # eta from the stored fields
    A, B = adata.obsm["X_lfm"].astype(float), adata.varm["lfm"].astype(float)
    eta = adata.uns["lfm"]["mu"] + adata.obs["lfm_a"].to_numpy(float)[:, None] + adata.var["lfm_b"].to_numpy(float)
    eta = eta + A @ B.T + np.log(adata.obs["lfm_size_factor"].to_numpy(float))[:, None]
    rate = np.exp(eta + norm.ppf(0.9) * sd)
    upper = -np.expm1(-rate) if likelihood == "bernoulli" else rate
    table = lfm.tl.recommend(adata, n_top=4, order=order)
    check(table, adata, chosen := brute_force(expected if order == "expected" else upper, adata.X.toarray() > 0, 4))
    at = chosen["row"].to_numpy(), chosen["column"].to_numpy()
    np.testing.assert_allclose(table["expected"], expected[at], rtol=1e-5)
    np.testing.assert_allclose(table["upper"], upper[at], rtol=1e-4)


@pytest.mark.parametrize("order", ["expected", "upper"])
def test_ratings_from_a_fit_to_what_is_stored(ratings, seen, order):
    adata = ratings.copy()
    lfm.tl.hold_out(adata, 0.1, observed="stored")
    lfm.tl.fit(adata, 2, likelihood="normal", observed="stored", held_out="held_out", progress=False)
    uns, A, B = adata.uns["lfm"], adata.obsm["X_lfm"].astype(float), adata.varm["lfm"].astype(float)
    mean = uns["mu"] + adata.obs["lfm_a"].to_numpy(float)[:, None] + adata.var["lfm_b"].to_numpy(float) + A @ B.T
    S, T = unpacked(adata.obsm["lfm_cov"]), unpacked(adata.varm["lfm_cov"])
    u, v = (np.column_stack([np.ones(len(rows)), rows]) for rows in (A, B))
    var = np.einsum("ik,jkl,il->ij", u, T, u) + np.einsum("jk,ikl,jl->ij", v, S, v)
    var += np.einsum("ikl,jlk->ij", S[:, 1:, 1:], T[:, 1:, 1:])
    bound = mean + norm.ppf(0.9) * np.sqrt(var)
    table = lfm.tl.recommend(adata, n_top=3, order=order)
    # what was held out is stored, and so has been seen
    check(table, adata, chosen := brute_force(mean if order == "expected" else bound, seen, 3))
    at = chosen["row"].to_numpy(), chosen["column"].to_numpy()
    np.testing.assert_allclose(table["expected"], mean[at], rtol=1e-5)
    np.testing.assert_allclose(table["upper"], bound[at], rtol=1e-4)


def test_new_rows_are_placed_and_then_recommended_to(fitted):
    values = sp.random(5, fitted.n_vars, 0.3, format="csr", rng=np.random.default_rng(0), dtype=np.float32)
    new = fitted[:5].copy()
    values.data -= 0.5
    new.X = values
    lfm.tl.project(new, fitted, key_added="new")
    table = lfm.tl.recommend(new, n_top=3, key="new")
    assert len(table) == 15
    rows, columns = new.obs_names.get_indexer(table["cell"]), new.var_names.get_indexer(table["gene"])
    assert not new.to_df().to_numpy()[rows, columns].any()


def test_nothing_is_written(ratings):
    before = ratings.copy()
    lfm.tl.recommend(ratings)
    assert (ratings.X != before.X).nnz == 0
    assert set(ratings.layers) == set(before.layers)
    assert set(ratings.uns) == set(before.uns)
    pd.testing.assert_frame_equal(ratings.obs, before.obs)


def test_another_layer_warns(ratings):
    ratings.layers["seen"] = ratings.X
    with pytest.warns(UserWarning, match="not what the fit read"):
        table = lfm.tl.recommend(ratings, layer="seen")
    pd.testing.assert_frame_equal(table, lfm.tl.recommend(ratings))


BAD = {
    "name": ({"obs_names": "cell_x"}, KeyError, "obs_names has no 'cell_x'"),
    "no names": ({"obs_names": []}, ValueError, "`obs_names` names nothing"),
    "n_top": ({"n_top": 0}, ValueError, "`n_top` must be at least 1"),
    "n_top real": ({"n_top": 1.5}, TypeError, "`n_top` must be a whole number"),
    "order": ({"order": "lower"}, ValueError, "`order` must be one of 'expected', 'upper', found 'lower'"),
    "level": ({"level": 90}, ValueError, "`level` must lie between 0 and 1, found 90"),
    "layer": ({"layer": "nothing"}, KeyError, "There is no layer 'nothing'"),
    "key": ({"key": "none"}, KeyError, "uns has no 'none'"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:layer=:UserWarning")
def test_bad_input(ratings, name):
    options, error, words = BAD[name]
    with pytest.raises(error, match=words):
        lfm.tl.recommend(ratings, **options)


def test_dense_data_leave_nothing_to_recommend(fitted):
    with pytest.raises(ValueError, match="X is dense, so every entry has been seen"):
        lfm.tl.recommend(fitted)


def test_tables_beyond_bounds(ratings, monkeypatch):
    monkeypatch.setattr(_recommend, "MAX_ROWS", 1000)
    with pytest.raises(ValueError, match="150 rows with 80 entries each make 12,000, more than 1,000"):
        lfm.tl.recommend(ratings, n_top=1000)


def test_not_an_anndata():
    with pytest.raises(TypeError, match="`adata` must be an AnnData"):
        lfm.tl.recommend(None)
