"""A level that all values share changes no fit, and every tool answers on the scale of the values."""

from __future__ import annotations

import functools

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm

N, M, R = 60, 40, 2
LEVEL = 1e6
# of the spread, which is about 1
CLOSE = 1e-3
LEVELS = [1e3, 1e6, 1e9, -1e6]
BLACK_BOX = {"engine": "pyro", "max_epochs": 5}
PATHS = {
    "shared": {},
    "gene": {"noise": "gene"},
    "cell_gene": {"noise": "cell_gene"},
    "mean_field": {"family": "mean_field"},
    "minibatches": {"batch_size": 20},
    "minibatches_cell_gene": {"batch_size": 20, "noise": "cell_gene"},
    "margins": {"n_factors": 0},
    "auto": {"n_factors": "auto"},
    "covariates": {"covariates": ["batch"]},
    "mask_var": {"mask_var": "chosen"},
    "held_out": {"held_out": "test"},
    "held_out_gene_mean_field": {"held_out": "test", "noise": "gene", "family": "mean_field"},
    "held_out_minibatches": {"held_out": "test", "batch_size": 20},
    "held_out_auto": {"held_out": "test", "n_factors": "auto"},
    "stored": {"observed": "stored"},
    "stored_held_out": {"observed": "stored", "held_out": "test"},
    "stored_minibatches": {"observed": "stored", "held_out": "test", "batch_size": 20},
    "full_sparse": {"full_sparse": True},
    "full_sparse_held_out": {"full_sparse": True, "held_out": "test"},
    "pyro": BLACK_BOX,
    "pyro_gene_mean_field_minibatches": {**BLACK_BOX, "noise": "gene", "family": "mean_field", "batch_size": 20},
    "student_t": {**BLACK_BOX, "likelihood": "student_t"},
}
# each is one of the others with an option of another one of them
SLOW = {
    "minibatches",
    "margins",
    "auto",
    "covariates",
    "stored_minibatches",
    "minibatches_cell_gene",
    "held_out_gene_mean_field",
    "held_out_minibatches",
    "held_out_auto",
    "full_sparse_held_out",
    "pyro_gene_mean_field_minibatches",
}
PASSING = "ignore:.*(did not converge|rises at):UserWarning"


def data(level=0.0, *, observed="all", full_sparse=False):
    """Values around `level`; the same entries are stored, and held out, whatever it is, and a few are odd."""
    drawn = lfm.datasets.simulate(N, M, R, rng=3)
    x = np.asarray(drawn.X, dtype=np.float64)
    x += level - x.mean()
    x[[4, 9, 21, 33], [11, 3, 30, 8]] += 12
    rng = np.random.default_rng(0)
    if observed == "stored":
        row, column = np.nonzero((rng.random(x.shape) < 0.6) | (x > level + 9))
        x = sp.csr_matrix((x[row, column], (row, column)), shape=x.shape)
    elif full_sparse:
        x = sp.csr_matrix(x)
    adata = ad.AnnData(x, obs=drawn.obs[[]], var=drawn.var[[]])
    adata.obs["batch"] = np.arange(N) % 3 == 0
    adata.obs["group"] = np.where(np.arange(N) < 20, "first", "second")
    adata.var["chosen"] = np.arange(M) != 7
    held_out = np.random.default_rng(1).random((N, M)) < 0.1
    held_out[[4, 9, 21, 33], [11, 3, 30, 8]] = False
    adata.layers["test"] = sp.csr_matrix(held_out)
    return adata


@functools.cache
def fitted(name, level=0.0):
    """A fit by one of the paths. Shared: copy before writing into it."""
    options = {"n_factors": R, "likelihood": "normal"} | PATHS[name]
    adata = data(level, observed=options.get("observed", "all"), full_sparse=options.pop("full_sparse", False))
    lfm.tl.fit(adata, progress=False, **options)
    return adata


def eta_less_mu(adata):
    margins = adata.obs["lfm_a"].to_numpy(float)[:, None] + adata.var["lfm_b"].to_numpy(float)
    return margins + adata.obsm["X_lfm"].astype(float) @ adata.varm["lfm"].astype(float).T


def assert_same_fit(adata, plain, level):
    np.testing.assert_allclose(adata.uns["lfm"]["mu"] - level, plain.uns["lfm"]["mu"], atol=CLOSE)
    np.testing.assert_allclose(eta_less_mu(adata), eta_less_mu(plain), atol=CLOSE)
    for name in ("lfm_b_sd", "lfm_sigma"):
        np.testing.assert_allclose(adata.var[name], plain.var[name], rtol=CLOSE)
    np.testing.assert_allclose(adata.obs["lfm_a_sd"], plain.obs["lfm_a_sd"], rtol=CLOSE)
    traces = [one.uns["lfm"]["elbo"] for one in (adata, plain)]
    np.testing.assert_allclose(traces[0]["value"], traces[1]["value"], atol=CLOSE)
    if "held_out" in plain.uns["lfm"]:
        for name in ("rmse", "log_density"):
            found, expected = (one.uns["lfm"]["held_out"][name] for one in (adata, plain))
            np.testing.assert_allclose(found, expected, atol=CLOSE)


@pytest.mark.filterwarnings(PASSING)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PATHS]
)
def test_a_level_changes_no_fit(name):
    adata, plain = fitted(name, LEVEL), fitted(name)
    assert_same_fit(adata, plain, LEVEL)
    assert adata.uns["lfm"]["converged"] == plain.uns["lfm"]["converged"]
    assert abs(adata.uns["lfm"]["level"] - LEVEL) <= 1
    assert "level" not in plain.uns["lfm"]


def test_it_is_logged(caplog):
    with caplog.at_level("INFO", "scvi_lfm"):
        lfm.tl.fit(data(LEVEL), R, progress=False)
    assert "less their common level 1000000" in caplog.text


@pytest.mark.parametrize("level", [level for level in LEVELS if level != LEVEL])
@pytest.mark.parametrize("name", ["shared", "held_out", "stored_held_out"])
@pytest.mark.half_slow
def test_however_high_or_low_it_is(level, name):
    assert_same_fit(fitted(name, level), fitted(name), level)


def test_zeros_that_are_not_stored_are_as_good_as_stored_ones():
    fits = []
    for form in (np.asarray, sp.csr_matrix):
        adata = data(40.0)
        adata.X[3, 5] = adata.X[40, 2] = 0
        adata.X = form(adata.X)
        lfm.tl.fit(adata, R, progress=False)
        assert abs(adata.uns["lfm"]["level"] - 40) <= 1
        fits.append(adata)
    assert fits[1].X.nnz == N * M - 2
    np.testing.assert_array_equal(fits[0].obsm["X_lfm"], fits[1].obsm["X_lfm"])
    tables = [lfm.get.anomalies_df(lfm.tl.anomalies(one, copy=True)) for one in fits]
    np.testing.assert_array_equal(tables[0]["y"], tables[1]["y"])
    assert 0.0 in set(tables[0]["y"])


def test_a_spread_far_beyond_that_of_the_prior_of_mu():
    """The prior of mu has a standard deviation of 100: it would pull mu, and mu the scale of b."""
    fits = []
    for level in (3e4, 0.0):
        adata = data()
        adata.X = 1e4 * adata.X + level
        lfm.tl.fit(adata, R, progress=False)
        fits.append(adata)
    np.testing.assert_allclose(eta_less_mu(fits[0]), eta_less_mu(fits[1]), atol=1e4 * CLOSE)


@pytest.fixture(scope="module", params=["shared", "cell_gene", "covariates", "held_out", "stored_held_out"])
def both(request, tmp_path_factory):
    """Fits with the level, read back from a file, without it, and the first as it was before it was written."""
    adata, plain = fitted(request.param, LEVEL), fitted(request.param)
    path = tmp_path_factory.mktemp("level") / "fit.h5ad"
    adata.write_h5ad(path)
    return ad.read_h5ad(path), plain, adata


def test_predictions_are_on_the_scale_of_the_values(both):
    adata, plain, written = both
    names = {"obs_names": list(plain.obs_names[:9]), "var_names": list(plain.var_names[:9])}
    found, expected, same = (lfm.tl.predict(one, **names) for one in (adata, plain, written))
    for column in ("expected", "q0.05", "q0.95"):
        np.testing.assert_allclose(found[column] - LEVEL, expected[column], atol=CLOSE)
        np.testing.assert_array_equal(found[column], same[column])
    for column in ("sd", "predictive_sd"):
        np.testing.assert_allclose(found[column], expected[column], atol=CLOSE)
    with_layer = [one.copy() for one in (adata, plain)]
    for one in with_layer:
        lfm.tl.predict(one, layer_added="eta")
    np.testing.assert_allclose(with_layer[0].layers["eta"] - LEVEL, with_layer[1].layers["eta"], atol=CLOSE)
    assert with_layer[1].layers["eta"].dtype == np.float32


def test_anomalies_are_the_same_entries(both):
    tables, scores = [], []
    for one in both[:2]:
        one = lfm.tl.anomalies(one, copy=True, by="either", fdr=0.5)
        scores.append([one.obs["lfm_anomaly"], one.var["lfm_anomaly"], [one.uns["lfm_anomaly"]["depth_correlation"]]])
        tables.append(lfm.get.anomalies_df(one))
        axes = lfm.pl.anomalies(one, show=False)
        low, high = axes.get_xlim()
        assert high - low < 100  # the diagonal is drawn where the values are
        plt.close(axes.figure)
    found, expected = tables
    assert len(expected) > 2
    for column in ("cell", "gene", "direction"):
        assert found[column].tolist() == expected[column].tolist()
    for column in ("y", "expected"):
        np.testing.assert_allclose(found[column] - LEVEL, expected[column], atol=CLOSE)
    np.testing.assert_allclose(found["log_ratio"], expected["log_ratio"], rtol=CLOSE)
    for with_level, without in zip(*scores, strict=True):
        np.testing.assert_allclose(with_level, without, atol=CLOSE)


@pytest.mark.slow
def test_a_check_says_the_same(both):
    found, expected = (lfm.tl.check(one, refit="covariates" in one.uns["lfm"]) for one in both[:2])
    np.testing.assert_allclose(found.histogram, expected.histogram, atol=2 / N)  # a transform at an edge of its bin
    assert found.calibration["n"].tolist() == pytest.approx(expected.calibration["n"].tolist(), abs=2)
    np.testing.assert_allclose(found.convergence["eta_difference"], expected.convergence["eta_difference"], atol=0.01)
    np.testing.assert_allclose(found.leftover, expected.leftover, atol=0.01)
    assert found.trusted == expected.trusted
    edges = [float(name[2:]) for name in found.calibration["stratum"] if name.startswith("< ")]
    others = [float(name[2:]) for name in expected.calibration["stratum"] if name.startswith("< ")]
    np.testing.assert_allclose(np.subtract(edges, LEVEL), others, atol=0.02)  # to three digits


def test_projected_cells_and_their_predictions(both):
    placed = []
    for one in both[:2]:
        some = one[:25].copy()
        assert lfm.tl.project(some, one, key_added="new") is None
        placed.append(some)
    for name in ("X_new", "X_new_sd"):
        scale = placed[1].obsm[name].max()
        np.testing.assert_allclose(placed[0].obsm[name], placed[1].obsm[name], atol=CLOSE * scale)
    np.testing.assert_allclose(placed[0].obs["new_a"], placed[1].obs["new_a"], atol=CLOSE)
    names = {"obs_names": list(placed[0].obs_names), "var_names": ["gene_3"], "key": "new"}
    found, expected = (lfm.tl.predict(one, **names)["expected"] for one in placed)
    np.testing.assert_allclose(found - LEVEL, expected, atol=CLOSE)


@pytest.mark.parametrize("level", [0.0, *LEVELS])
@pytest.mark.parametrize("name", ["shared", "stored"])
@pytest.mark.half_slow
def test_cells_of_the_fit_get_what_they_got_there(name, level):
    adata = fitted(name, level)
    again = lfm.tl.project(adata, adata, key_added="new", copy=True)
    expected = adata.obsm["X_lfm"]
    # but for the rounding of stored genes to float32
    np.testing.assert_allclose(again.obsm["X_new"], expected, rtol=0, atol=2e-5 * expected.std())


def test_draws_and_searches(both):
    adata, plain, _ = both
    found, expected = (lfm.tl.sample_posterior(one, 2) for one in (adata, plain))
    assert found.pop("mu") - LEVEL == pytest.approx(float(expected.pop("mu")), abs=CLOSE)
    for name, draws in expected.items():
        np.testing.assert_allclose(found[name], draws, atol=CLOSE * np.abs(draws).max())
    genes = [lfm.tl.similar_genes(one, "gene_1")["correlation"] for one in (adata, plain)]
    np.testing.assert_allclose(*genes, atol=CLOSE)
    cells = [lfm.tl.rank_cells(one, ["gene_1", "gene_2"], copy=True) for one in (adata, plain)]
    added = (set(cells[0].obs) - set(adata.obs)).pop()
    np.testing.assert_allclose(cells[0].obs[added], cells[1].obs[added], atol=CLOSE)


def test_fold_changes_are_those_of_the_values(both):
    adata, plain, _ = both
    tables = []
    for one in (adata, plain):
        one = lfm.tl.rank_genes(one, "group", groups=["first"], copy=True)
        tables.append(lfm.get.rank_genes_df(one).set_index("names").loc[plain.var_names[plain.var["lfm_b"].notna()]])
    for column in ("scores", "sd", "lfsr"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], atol=CLOSE)
    # no logarithm of a count has such a level
    assert tables[0]["logfoldchanges"].isna().all()


def test_recommended_entries():
    tables = [lfm.tl.recommend(fitted("stored", level), n_top=3, order="upper") for level in (LEVEL, 0.0)]
    for column in ("cell", "gene", "rank"):
        assert tables[0][column].tolist() == tables[1][column].tolist()
    for column in ("expected", "upper"):
        np.testing.assert_allclose(tables[0][column] - LEVEL, tables[1][column], atol=CLOSE)


@pytest.mark.filterwarnings(PASSING)
@pytest.mark.slow
def test_predictions_under_the_student_t():
    adata, plain = fitted("student_t", LEVEL), fitted("student_t")
    names = {"obs_names": list(plain.obs_names[:9]), "var_names": list(plain.var_names[:9])}
    found, expected = (lfm.tl.predict(one, **names, quantiles=[0.95]) for one in (adata, plain))
    for column in ("expected", "q0.95"):
        np.testing.assert_allclose(found[column] - LEVEL, expected[column], atol=CLOSE)


@pytest.mark.parametrize(("dtype", "level"), [(np.float32, 1e6), (np.float32, -1e6)])
@pytest.mark.parametrize("options", [{}, {"observed": "stored"}, {"held_out": "test"}, {"engine": "pyro"}])
def test_digits_that_were_lost_are_refused(dtype, level, options):
    adata = data(level, observed=options.get("observed", "all"))
    adata.X = adata.X.astype(dtype)
    before = set(adata.obs), set(adata.var), set(adata.obsm), set(adata.varm), set(adata.uns)
    with pytest.raises(
        ValueError, match=r"X holds values around .* deviation of .* apart by .*Pass float64 .*subtract"
    ):
        lfm.tl.fit(adata, R, progress=False, **options)
    assert before == (set(adata.obs), set(adata.var), set(adata.obsm), set(adata.varm), set(adata.uns))


@pytest.mark.parametrize(
    "tool", [lfm.tl.anomalies, lfm.tl.check, lambda new: lfm.tl.project(new, new, key_added="new")]
)
def test_tools_refuse_lost_digits_too(tool):
    adata = fitted("shared", LEVEL).copy()
    adata.X = adata.X.astype(np.float32)
    with pytest.raises(ValueError, match="float32 tells values of that size apart by no less than"):
        tool(adata)


def test_float32_is_taken_where_it_has_the_digits():
    adata, plain = data(1e3), fitted("shared")
    adata.X = adata.X.astype(np.float32)
    lfm.tl.fit(adata, R, progress=False)
    assert_same_fit(adata, plain, 1e3)


@pytest.mark.parametrize("level", [1e6, 1e9])
def test_whole_numbers_around_a_level_are_no_counts(level):
    """As an instrument reads them out; that the level is subtracted changes no fit."""
    tens, plain = data(), data()
    tens.X = (10 * tens.X).round()
    plain.X = tens.X + 0.5
    tens.X = (tens.X + level).astype(np.int64)
    for adata in (tens, plain):
        lfm.tl.fit(adata, R, progress=False)
    assert tens.uns["lfm"]["params"]["likelihood"] == "normal"
    np.testing.assert_allclose(tens.uns["lfm"]["mu"] - level, plain.uns["lfm"]["mu"] - 0.5, atol=10 * CLOSE)
    np.testing.assert_allclose(np.abs(tens.obsm["X_lfm"]), np.abs(plain.obsm["X_lfm"]), atol=10 * CLOSE)


def test_float32_whole_for_want_of_digits_is_refused():
    """Beyond 2^24 every float32 is a whole number."""
    adata = data(3e7)
    adata.X = adata.X.astype(np.float32)
    with pytest.raises(ValueError, match="float32 tells values of that size apart by no less than 2"):
        lfm.tl.fit(adata, R, progress=False)


def test_new_cells_on_another_scale_are_named():
    adata, new = fitted("shared", LEVEL), data(2 * LEVEL)
    with pytest.warns(UserWarning, match="around 1000000; results mean little") as caught:
        lfm.tl.project(new, adata)
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="holds values that are negative"):
        lfm.tl.project(data(), adata)


def test_a_single_value_can_be_projected():
    adata, plain = fitted("shared", LEVEL), fitted("shared")
    placed = []
    for one in (adata, plain):
        new = one[3:4, 5:6].copy()
        with pytest.warns(UserWarning, match="39 of 40 fitted genes"):
            lfm.tl.project(new, one, key_added="new")
        placed.append(new.obs["new_a"])
    np.testing.assert_allclose(*placed, atol=CLOSE)


def test_cells_without_a_value_can_be_projected():
    adata = fitted("stored", LEVEL)
    new = adata[:2].copy()
    new.X = sp.csr_matrix(new.shape)
    lfm.tl.project(new, adata, key_added="new")
    np.testing.assert_allclose(new.obs["new_a"], adata.uns["lfm"]["prior_cell_mean"][0], atol=CLOSE)


def test_constant_values_are_what_they_were():
    adata = data()
    adata.X = np.full_like(adata.X, 1e6)
    with pytest.raises(ValueError, match="Every value of X is the same"):
        lfm.tl.fit(adata, R, progress=False)


def test_a_value_that_is_missing_is_named():
    adata = data(LEVEL)
    adata.X[3, 5] = np.nan
    with pytest.raises(ValueError, match="NaN, infinite .*cell 'cell_3', gene 'gene_5'"):
        lfm.tl.fit(adata, R, progress=False)
