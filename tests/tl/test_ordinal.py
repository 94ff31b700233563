"""Levels from fit to tools: simulated ratings, all of them data or a part."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm._cli import main

N, M, LOWEST = 200, 80, 1
THRESHOLDS = np.array([-1.5, -0.5, 0.6, 1.5])


class Ratings:
    """Ratings from 1 to 5, and what made them."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        A, B = rng.standard_normal((N, 2)), 0.7 * rng.standard_normal((M, 2))
        self.eta = 0.4 * rng.standard_normal((N, 1)) + 0.5 * rng.standard_normal(M) + A @ B.T
        self.y = LOWEST + (self.eta[..., None] + rng.standard_normal((N, M))[..., None] > THRESHOLDS).sum(-1)
        self.seen = rng.random((N, M)) < 0.4
        self.seen[:, 0] = True

    def adata(self, observed):
        values = self.y.astype(np.float32)
        X = values if observed == "all" else sp.csr_matrix(np.where(self.seen, values, 0))
        adata = ad.AnnData(X)
        adata.obs_names, adata.var_names = (
            [f"{word}{i}" for i in range(size)] for word, size in (("user", N), ("film", M))
        )
        return adata


@pytest.fixture(scope="module")
def ratings():
    return Ratings()


@pytest.fixture(scope="module", params=["all", "stored"])
def fitted(request, ratings):
    adata = ratings.adata(request.param)
    lfm.tl.fit(adata, 2, likelihood="ordinal", observed=request.param, progress=False)
    return adata


def table(adata):
    return lfm.tl.predict(adata, obs_names=adata.obs_names, var_names=adata.var_names)


def test_eta_and_thresholds_are_found(fitted, ratings):
    """The scale of eta is that of the noise, which is known, so slopes are near one and gaps are those of the truth."""
    A, B = fitted.obsm["X_lfm"], fitted.varm["lfm"]
    found = fitted.obs["lfm_a"].to_numpy()[:, None] + fitted.var["lfm_b"].to_numpy() + A @ B.T
    unseen = ~ratings.seen
    slope = np.polyfit(found[unseen], ratings.eta[unseen], 1)[0]
    assert slope == pytest.approx(1, abs=0.1)
    assert np.corrcoef(found[unseen], ratings.eta[unseen])[0, 1] > 0.9
    lowest, *thresholds = fitted.uns["lfm"]["levels"]
    assert lowest == LOWEST
    np.testing.assert_allclose(np.diff(thresholds), np.diff(THRESHOLDS), rtol=0.12)


def test_probabilities_of_levels(fitted, ratings):
    """They sum to one, agree with the expected level and its spread, and hold for what was not seen."""
    found = table(fitted)
    p = found[[f"p_{level}" for level in range(1, 6)]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    levels = np.arange(1, 6)
    np.testing.assert_allclose(p @ levels, found["expected"], rtol=1e-9)
    np.testing.assert_allclose(p @ levels**2 - (p @ levels) ** 2, found["predictive_sd"] ** 2, rtol=1e-6, atol=1e-9)
    assert set(np.unique(found[["q0.05", "q0.95"]])) <= set(levels)
    below = np.take_along_axis(p.cumsum(1), found[["q0.95"]].to_numpy().astype(int) - 1, 1)
    assert (below >= 0.95).all()
    if fitted.uns["lfm"]["params"]["observed"] == "stored":
        unseen = ~ratings.seen.ravel()
        y = ratings.y.ravel()[unseen]
        for level in levels:  # five standard deviations, and the prediction's own errors are shared by rows
            often = p[unseen, level - 1].mean()
            assert (y == level).mean() == pytest.approx(often, abs=0.01 + 5 * np.sqrt(often / len(y)))


@pytest.mark.slow
def test_levels_predict_better_than_numbers(ratings):
    """By log density of whole levels, the Normal's taken over the interval around each."""
    adata = ratings.adata("stored")
    lfm.tl.fit(adata, 2, likelihood="ordinal", observed="stored", progress=False)
    lfm.tl.fit(adata, 2, likelihood="normal", observed="stored", progress=False, key_added="number")
    from scipy.stats import norm

    levels, unseen = np.arange(1, 6), ~ratings.seen.ravel()
    p = table(adata)[[f"p_{level}" for level in levels]].to_numpy()
    number = lfm.tl.predict(adata, obs_names=adata.obs_names, var_names=adata.var_names, key="number")
    edges = np.array([-np.inf, 1.5, 2.5, 3.5, 4.5, np.inf])
    q = np.diff(norm.cdf(edges, number[["expected"]].to_numpy(), number[["predictive_sd"]].to_numpy()), axis=1)
    at = np.arange(N * M), ratings.y.ravel() - 1
    assert np.log(p[at])[unseen].mean() > np.log(q[at])[unseen].mean()


@pytest.mark.slow
def test_tools(fitted):
    adata = fitted.copy()
    report = lfm.tl.check(adata)
    # the binomial error of 12,000 entries is 0.3 %
    assert 0.88 < report.calibration["coverage"].iloc[0] < 0.92
    adata.obs["group"] = np.where(np.arange(N) % 2, "x", "y")
    lfm.tl.rank_genes(adata, "group")
    assert lfm.get.rank_genes_df(adata, "x")["logfoldchanges"].isna().all()
    if adata.uns["lfm"]["params"]["observed"] == "stored":
        best = lfm.tl.recommend(adata, obs_names="user0", n_top=5)
        assert (best["expected"].diff().dropna() <= 0).all()
        assert (best["upper"] > best["expected"]).all()
        assert best["upper"].max() <= 5
        unrated = set(adata.var_names[adata.X[[0]].toarray()[0] == 0])
        assert set(best["gene"]) <= unrated


def test_planted_levels_are_found(ratings):
    """The first level where the last is all but certain."""
    sure = np.argwhere(ratings.eta > 3.6)
    sure = sure[np.unique(sure[:, 0], return_index=True)[1]][:12]
    adata = ratings.adata("all")
    adata.X[tuple(sure.T)] = 1
    lfm.tl.fit(adata, 2, likelihood="ordinal", progress=False)
    lfm.tl.anomalies(adata, fdr=0.1)
    found = lfm.get.anomalies_df(adata)
    planted = {(f"user{i}", f"film{j}") for i, j in sure}
    hits = planted & set(zip(found["cell"].astype(str), found["gene"].astype(str), strict=True))
    assert len(hits) >= len(planted) / 2
    assert len(hits) >= 0.7 * len(found)


def test_new_rows_get_what_the_fit_gave_them(fitted):
    new = ad.AnnData(fitted.X[:40].copy(), fitted.obs[[]].iloc[:40], fitted.var[[]])
    lfm.tl.project(new, fitted)
    spread = fitted.obsm["X_lfm"].std(0)
    # a cell stops when a step is expected to gain less than 1e-4 nats: some hundredths of its standard deviations
    assert (np.abs(new.obsm["X_lfm"] - fitted.obsm["X_lfm"][:40]) < 0.01 * spread).all()
    one = [lfm.tl.predict(data, obs_names="user3", var_names="film2") for data in (new, fitted)]
    np.testing.assert_allclose(one[0].iloc[:, 2:].astype(float), one[1].iloc[:, 2:].astype(float), atol=0.01)


def test_round_trip(fitted, tmp_path):
    fitted.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    before, after = (lfm.tl.predict(data, obs_names="user3", var_names=["film2", "film7"]) for data in (fitted, again))
    assert before.equals(after)
    lfm.tl.fit(again, 2, likelihood="poisson", observed=fitted.uns["lfm"]["params"]["observed"], progress=False)
    assert "levels" not in again.uns["lfm"]


@pytest.mark.slow
def test_command_line(ratings, tmp_path):
    source, out = tmp_path / "ratings.h5ad", tmp_path / "fitted.h5ad"
    ratings.adata("stored").write_h5ad(source)
    words = ["--likelihood", "ordinal", "--observed", "stored", "--n-factors", "2", "--max-epochs", "3"]
    main(["fit", str(source), str(out), *words])
    assert ad.read_h5ad(out).uns["lfm"]["params"]["likelihood"] == "ordinal"


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda y: y + 0.5, {}, ValueError, "not whole numbers; the first is"),
        (lambda y: y - 3, {}, ValueError, "that are negative"),
        (
            lambda y: 20 * y,
            {},
            ValueError,
            "at most 50 levels, as those of ratings, and X holds",
        ),
        (lambda y: y, {"engine": "pyro"}, ValueError, "is fitted by engine='natural_gradient'"),
        (lambda y: y, {"noise": "gene"}, ValueError, "`noise` belongs to likelihood='normal'"),
        (lambda y: y, {"size_factors": np.ones(N)}, ValueError, "`size_factors` belong to count likelihoods"),
        (lambda y: y, {"prior_scales": {"sigma": 1.0}}, ValueError, "has no sigma"),
    ],
)
def test_what_is_not_for_levels_is_refused(ratings, change, options, error, words):
    adata = ad.AnnData(change(ratings.y).astype(np.float64))
    before = adata.copy()
    with pytest.raises(error, match=words):
        lfm.tl.fit(adata, 2, likelihood="ordinal", progress=False, **options)
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obs) == []


def test_levels_that_the_fit_did_not_have_are_refused(fitted):
    new = ad.AnnData(fitted[:5].to_df().to_numpy(copy=True), fitted.obs[[]].iloc[:5], fitted.var[[]])
    new.X[2, 3] = 6
    if fitted.uns["lfm"]["params"]["observed"] == "stored":
        new.X = sp.csr_matrix(new.X)
    with pytest.raises(ValueError, match="holds other levels"):
        lfm.tl.project(new, fitted)


def test_covariates_are_told_apart(ratings):
    """A shift of each film between two halves of the users, on the scale of eta."""
    rng = np.random.default_rng(4)
    late, shift = rng.random(N) < 0.5, rng.standard_normal(M)
    eta = ratings.eta + np.outer(late, shift)
    y = LOWEST + (eta[..., None] + rng.standard_normal((N, M))[..., None] > THRESHOLDS).sum(-1)
    adata = ad.AnnData(y.astype(np.float32))
    adata.obs["when"] = np.where(late, "late", "early")
    lfm.tl.fit(adata, 2, likelihood="ordinal", covariates="when", progress=False)
    beta = adata.varm["lfm_beta"][:, 0]  # late against early
    # 200 users tell a shift to about 0.2
    assert np.corrcoef(beta, shift)[0, 1] > 0.9
    assert np.polyfit(shift, beta, 1)[0] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "levels", [[1.0, 0.5, 0.2], [1.0, np.nan, 2.0], [np.nan, 0.0, 1.0], [1.0], [[1.0, 0.0, 1.0]]], ids=str
)
def test_levels_that_were_changed_are_refused(fitted, levels):
    adata = fitted.copy()
    adata.uns["lfm"]["levels"] = np.array(levels)
    with pytest.raises(ValueError, match="levels is"):
        lfm.tl.predict(adata, obs_names="user0", var_names="film0")


def test_pictures_say_what_levels_have(fitted):
    """Shares are of the factors' own variance, as of counts; scores are differences of eta."""
    assert lfm.pl.variance(fitted, show=False).get_ylabel() == "share of the factors' variance (%)"
    assert "of factors' variance" in lfm.pl.factors(fitted, show=False).get_xlabel()
    adata = fitted.copy()
    adata.obs["group"] = np.where(np.arange(N) % 2, "x", "y")
    lfm.tl.rank_genes(adata, "group")
    figure = lfm.pl.rank_genes(adata, show=False)[0].figure
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert any("difference in eta" in text for text in texts)
