"""What users get wrong with counts: an error that names what was found and the mend; and an AnnData left alone."""

from __future__ import annotations

import contextlib
import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm

N, M = 40, 25
LIKELIHOODS = ("negative_binomial", "poisson", "bernoulli")


@pytest.fixture(scope="module")
def simulated():
    adata = lfm.datasets.simulate(
        N, M, 2, likelihood="negative_binomial", mu=0.8, factor_scales=[1.0, 0.8], depth_spread=0.3
    )
    adata.X = adata.X.toarray()
    return adata


@pytest.fixture
def counts(simulated):
    """Counts of cells, not fitted."""
    adata = simulated.copy()
    adata.obs["depth"] = np.linspace(0.5, 2, N)
    return adata


@pytest.fixture(scope="module")
def reference(simulated):
    """A fit to them. Shared: not to be written into."""
    return fit(simulated, copy=True)


def assert_same(one: ad.AnnData, other: ad.AnnData) -> None:
    """Raise unless two AnnData hold the same bits in the same places."""
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    for container in ("obsm", "varm", "layers", "obsp", "varp"):
        assert set(getattr(one, container)) == set(getattr(other, container))
        for name in getattr(one, container):
            same_matrix(getattr(one, container)[name], getattr(other, container)[name])
    assert set(one.uns) == set(other.uns)
    same_matrix(one.X, other.X)


def same_matrix(one, other) -> None:
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    if sp.issparse(one):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    else:
        np.testing.assert_array_equal(one, other)


@contextlib.contextmanager
def refused(error: type[Exception], message: str, adata: ad.AnnData):
    """The call within raises an error with these words, and leaves the AnnData as it was."""
    before = adata.copy()
    with pytest.raises(error, match=re.escape(message)):
        yield
    assert_same(adata, before)


def with_values(adata, values):
    return ad.AnnData(values, obs=adata.obs, var=adata.var)


def fit(adata, n_factors=2, **options):
    """A quick fit."""
    return lfm.tl.fit(adata, n_factors, **{"progress": False, "likelihood": "negative_binomial", "tol": 0.1} | options)


# values

FORMS = [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_not_whole_numbers(counts, form, likelihood):
    values = np.ones((N, M))
    values[3, 5] = values[7, 1] = 0.5
    values[20] = 1.25
    adata = with_values(counts, form(values.astype(np.float32)))
    message = (
        f"likelihood='{likelihood}' is for {'zeros and ones' if likelihood == 'bernoulli' else 'counts'}, but X holds "
        "27 value(s) (2.7% of those stored) that are not whole numbers; the first is 0.5 in cell 'cell_3', gene "
        "'gene_5'. Pass the layer that holds raw counts, or likelihood='normal' for log values."
    )
    with refused(ValueError, message, adata):
        fit(adata, likelihood=likelihood)


def test_log_values_where_counts_were_asked_for(counts):
    counts.layers["lognorm"] = np.log1p(counts.X)
    share = (counts.layers["lognorm"] != np.rint(counts.layers["lognorm"])).mean()
    message = (
        f"layers['lognorm'] holds {round(share * N * M)} value(s) ({share:.1%} of those stored) that are not whole"
    )
    with refused(ValueError, message, counts):
        fit(counts, layer="lognorm")
    # where the choice is left open, they are fitted as what they are
    fit(counts, layer="lognorm", likelihood="auto")
    assert counts.uns["lfm"]["params"]["likelihood"] == "normal"


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8])
@pytest.mark.parametrize("form", FORMS)
def test_negative_values(counts, form, dtype, likelihood):
    values = (counts.X > 0).astype(dtype)
    values[4, 2] = values[9, 9] = -3
    adata = with_values(counts, form(values))
    message = (
        "that are negative; the first is -3 in cell 'cell_4', gene 'gene_2'. "
        "Counts cannot be; pass the layer that holds raw counts, or likelihood='normal'."
    )
    if np.dtype(dtype).kind == "f":
        message = message.replace("-3 in", "-3.0 in")
    with refused(ValueError, message, adata):
        fit(adata, likelihood=likelihood)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.half_slow
def test_values_that_float32_skips(counts, form, dtype):
    values = counts.X.astype(dtype)
    values[5, 6] = 2**24 + 2
    adata = with_values(counts, form(values))
    found = np.asarray(2**24 + 2, dtype=dtype)
    message = (
        f"1 value(s) ({1 / sp.csr_matrix(values).nnz if form is not np.asarray else 1 / (N * M):.1%} of those stored) "
        f"that are above 2^24, beyond which float32 skips whole numbers; the first is {found} in cell 'cell_5', gene "
        "'gene_6'. Look at them: they are no molecule counts. Divide them, or leave those genes out with mask_var."
    )
    with refused(ValueError, message, adata):
        fit(adata)
    fit(adata, 0, mask_var=adata.var_names != "gene_6")


@pytest.mark.parametrize("form", FORMS)
def test_values_above_one_are_no_presence(counts, form):
    values = (counts.X > 0).astype(np.float32)
    values[6, 4], values[8, 8] = 2, 7
    adata = with_values(counts, form(values))
    message = (
        "that are above 1; the first is 2.0 in cell 'cell_6', gene 'gene_4'. "
        "Binarise them first: adata.X = (adata.X > 0).astype('float32'), in memory (adata.to_memory())."
    )
    with refused(ValueError, message, adata):
        fit(adata, likelihood="bernoulli")
    adata.X = (adata.X > 0).astype("float32")
    fit(adata, 0, likelihood="bernoulli")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("value", [0, 1])
def test_constant_values(counts, likelihood, value):
    adata = with_values(counts, np.full((N, M), value, dtype=np.float32))
    with refused(ValueError, "Every value of X is the same: there is nothing to fit.", adata):
        fit(adata, likelihood=likelihood)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(counts, value):
    counts.X[3, 5] = value
    with refused(ValueError, f"the first is {value} in cell 'cell_3', gene 'gene_5'. Remove or replace", counts):
        fit(counts)


@pytest.mark.parametrize("form", FORMS)
def test_a_cell_without_counts(counts, form):
    values = counts.X.copy()
    values[[7, 30]] = 0
    adata = with_values(counts, form(values))
    message = (
        "2 cell(s) have no counts, first 'cell_7', and so no size factor. "
        "Call sc.pp.filter_cells(adata, min_counts=1) first, or pass size_factors=."
    )
    with refused(ValueError, message, adata):
        fit(adata)
    fit(adata, 0, size_factors=np.ones(N))


def test_a_cell_without_counts_of_the_genes_that_are_fitted(counts):
    counts.X[7, :10] = 0
    with refused(ValueError, "1 cell(s) have no counts, first 'cell_7'", counts):
        fit(counts, mask_var=np.arange(M) < 10)
    fit(counts)


# size factors

BAD_SIZES = [
    (np.ones(N - 1), ValueError, f"must hold one number for each of {N} cells, found shape ({N - 1},)."),
    (np.ones((N, 1)), ValueError, f"must hold one number for each of {N} cells, found shape ({N}, 1)."),
    (1.5, ValueError, f"must hold one number for each of {N} cells, found shape ()."),
    (np.where(np.arange(N) == 4, 0.0, 1.0), ValueError, "positive and finite: 1 are not, first 0.0 of cell 'cell_4'."),
    (np.where(np.arange(N) > 37, -2, 1), ValueError, "positive and finite: 2 are not, first -2 of cell 'cell_38'."),
    (np.where(np.arange(N) == 9, np.nan, 1), ValueError, "positive and finite: 1 are not, first nan of cell 'cell_9'."),
    (np.where(np.arange(N) == 9, np.inf, 1), ValueError, "positive and finite: 1 are not, first inf of cell 'cell_9'."),
    ("dept", KeyError, "`size_factors`: obs has no column 'dept'. Did you mean 'depth'?"),
    ("holes", ValueError, "positive and finite: 3 are not, first nan of cell 'cell_0'."),
    ("type", TypeError, "`size_factors` must be numbers or the name of a column of obs, found dtype object."),
    (np.ones(N, dtype=bool), TypeError, "must be numbers or the name of a column of obs, found dtype bool."),
    (np.ones(N, dtype=complex), TypeError, "must be numbers or the name of a column of obs, found dtype complex128."),
    (["1"] * N, TypeError, "`size_factors` must be numbers or the name of a column of obs, found dtype <U1."),
    ({"cell_0": 1.0}, TypeError, "`size_factors` must be numbers or the name of a column of obs, found dtype object."),
    (pd.Series(np.ones(N)), ValueError, "`size_factors` is a Series whose index is not obs_names. Reorder it, or pass"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD_SIZES, ids=[message[-40:] for _, _, message in BAD_SIZES])
def test_size_factors_that_are_none(counts, given, error, message):
    counts.obs["holes"] = np.where(np.arange(N) < 3, np.nan, 1)
    counts.obs["type"] = pd.Series(["one"] * N, index=counts.obs_names, dtype=object)
    with refused(error, message, counts):
        fit(counts, size_factors=given)


@pytest.mark.parametrize(
    "error", [case for case in BAD_SIZES if not isinstance(case[0], str)][:7], ids=lambda c: c[2][-30:]
)
def test_size_factors_of_new_cells_that_are_none(counts, reference, error):
    given, kind, message = error
    with refused(kind, message, counts):
        lfm.tl.project(counts, reference, size_factors=given)


@pytest.mark.parametrize(
    "given",
    [
        np.linspace(0.5, 2, N),
        np.linspace(0.5, 2, N).astype(np.float32),
        list(np.linspace(0.5, 2, N)),
        np.arange(1, N + 1, dtype=np.uint8),
        "depth",
        "whole",
    ],
    ids=["float64", "float32", "list", "whole numbers", "column", "column of whole numbers"],
)
@pytest.mark.half_slow
def test_numbers_of_any_kind_are_size_factors(counts, given):
    counts.obs["whole"] = np.arange(1, N + 1)
    fit(counts, 0, size_factors=given)
    expected = counts.obs[given] if isinstance(given, str) else given
    np.testing.assert_allclose(counts.obs["lfm_size_factor"], expected, rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["normal", "auto"])
def test_size_factors_of_log_values(counts, likelihood):
    adata = with_values(counts, np.log1p(counts.X))
    message = "`size_factors` belong to count likelihoods, and the values are fitted with likelihood='normal'."
    with refused(ValueError, message, adata):
        fit(adata, likelihood=likelihood, size_factors="depth")


# options that counts do not have


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, "auto"])
def test_noise_of_each_gene(counts, likelihood):
    adata = with_values(counts, (counts.X > 0).astype(np.float32))
    found = "negative_binomial" if likelihood == "auto" else likelihood
    message = f"`noise` belongs to likelihood='normal', found noise='gene' with likelihood={found!r}. Leave it out"
    with refused(ValueError, message, adata):
        fit(adata, likelihood=likelihood, noise="gene")


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, "auto"])
def test_a_fixed_sigma(counts, likelihood):
    adata = with_values(counts, (counts.X > 0).astype(np.float32))
    found = "negative_binomial" if likelihood == "auto" else likelihood
    message = f"`prior_scales['sigma']` belongs to likelihood='normal'; likelihood={found!r} has no sigma."
    with refused(ValueError, message, adata):
        fit(adata, likelihood=likelihood, prior_scales={"a": 0.3, "sigma": 1.0})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"batch_size": 4, "n_factors": 5},
            ValueError,
            "`batch_size` 4 splits 40 cells into batches of 4 or more, too",
        ),
        (
            {"batch_size": 7, "n_factors": 7},
            ValueError,
            "`batch_size` 7 splits 40 cells into batches of 6 or more, too",
        ),
        ({"batch_size": 1}, ValueError, "`batch_size` must be at least 2, found 1."),
        ({"batch_size": 20.5}, TypeError, "`batch_size` must be a whole number, found 20.5 of type float."),
        ({"n_factors": -1}, ValueError, "`n_factors` must be at least 0, found -1."),
        ({"n_factors": 26}, ValueError, "`n_factors` is 26, but 40 cells x 25 genes to fit allow at most 25."),
        (
            {"likelihood": "nb"},
            ValueError,
            "`likelihood` must be one of 'auto', 'normal', 'student_t', 'poisson', 'negative_binomia",
        ),
        (
            {"likelihood": None},
            ValueError,
            "`likelihood` must be one of 'auto', 'normal', 'student_t', 'poisson', 'negative_binomia",
        ),
        ({"tol": 0}, ValueError, "`tol` must be above 0, found 0."),
        ({"prior_scales": {"theta": 1.0}}, ValueError, "`prior_scales` has no scale 'theta'; the scales are 'a', 'A',"),
        ({"prior_scales": {"B": [1.0]}}, ValueError, "`prior_scales['B']` must be one positive number or one for each"),
        ({"layer": "counts"}, KeyError, "There is no layer 'counts'. There are none."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments(counts, options, error, message):
    with refused(error, message, counts):
        fit(counts, **options)


@pytest.mark.parametrize("moment", ["sweep.cell_step", "engine.gene_step", "engine.project_counts"])
def test_interrupted_by_the_user(counts, monkeypatch, moment):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"scvi_lfm.inference.counts.{moment}", interrupted)
    before = counts.copy()
    with pytest.raises(KeyboardInterrupt):
        fit(counts)
    assert_same(counts, before)


def test_a_breakdown_stores_nothing(counts, monkeypatch):
    def broken(*args, **kwargs):
        msg = "linalg.cholesky: the input is not positive-definite"
        raise torch.linalg.LinAlgError(msg)

    monkeypatch.setattr("scvi_lfm.inference.counts.sweep.cell_step", broken)
    with refused(
        FloatingPointError,
        "The fit broke down numerically: values, from 0 to 548, the one farthest out in cell 'cell_14'",
        counts,
    ):
        fit(counts)


# data that are hard, and fitted all the same


def tools_work_on(adata):
    lfm.tl.rank_genes(adata, mask_obs=np.arange(adata.n_obs) < 20)
    lfm.tl.rank_cells(adata, "gene_3")
    lfm.tl.predict(adata, obs_names="cell_3", var_names=["gene_3", "gene_4"])
    lfm.tl.project(adata.copy(), adata, key_added="new")
    draws = lfm.tl.sample_posterior(adata, 2)
    assert all(np.isfinite(draws[name]).all() for name in draws)


def all_finite(adata):
    for container in ("obs", "var", "obsm", "varm"):
        for name in getattr(adata, container):
            values = np.asarray(getattr(adata, container)[name])
            assert values.dtype.kind != "f" or np.isfinite(values).all(), name
    assert np.isfinite(adata.uns["lfm"]["elbo"]["value"]).all()
    assert adata.uns["lfm"]["variance_ratio"].max() <= 1


def one_count_of_a_gene(values, rng):
    values[:, 3] = 0
    values[5, 3] = 1


def half_of_all_in_one_gene(values, rng):
    values[:, 3] = rng.poisson(values.sum(1))


def nearly_all_in_one_gene(values, rng):
    values[:, 3] = rng.poisson(1e4 * (1 + values.sum(1)))


def one_deep_cell(values, rng):
    values[5] *= 1000


def one_cell_of_one_count(values, rng):
    values[5] = 0
    values[5, 3] = 1


def a_gene_without_counts(values, rng):
    values[:, 3] = 0


def equal_cells(values, rng):
    values[:] = values[0] + 1


HARD = [
    one_count_of_a_gene,
    half_of_all_in_one_gene,
    nearly_all_in_one_gene,
    one_deep_cell,
    one_cell_of_one_count,
    a_gene_without_counts,
    equal_cells,
]


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
@pytest.mark.parametrize("change", HARD)
@pytest.mark.half_slow
def test_hard_counts_are_fitted(counts, change, likelihood):
    change(counts.X, np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* are all zero")
        warnings.filterwarnings("ignore", message=".*did not converge")
        fit(counts, likelihood=likelihood, batch_size=20, max_epochs=15)
    all_finite(counts)
    tools_work_on(counts)


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("mu", [-1.0, 1.0])
@pytest.mark.half_slow
def test_dispersions_that_run_to_the_poissons_do_no_harm(mu, batch_size):
    adata = lfm.datasets.simulate(120, 60, 2, likelihood="poisson", mu=mu, factor_scales=[0.7, 0.5], depth_spread=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* are all zero")
        results = [
            fit(adata, likelihood=likelihood, batch_size=batch_size, copy=True, rng=0)
            for likelihood in ("negative_binomial", "poisson")
        ]
    result, poisson = results
    all_finite(result)
    assert result.uns["lfm"]["converged"]
    theta = result.var["lfm_theta"]
    assert (theta <= 1.0001e4).all()
    assert np.median(theta) > 20
    # next to nothing is lost by not knowing
    gain = poisson.uns["lfm"]["elbo"]["value"][-1] - poisson.uns["lfm"]["elbo"]["rank0"]
    difference = result.uns["lfm"]["elbo"]["value"][-1] - poisson.uns["lfm"]["elbo"]["value"][-1]
    assert difference > -0.02 * gain
    tools_work_on(result)


@pytest.mark.parametrize("change", ["always", "never but once", "every cell alike"])
def test_hard_presence_is_fitted(counts, change):
    counts.X = (counts.X > 0).astype(np.float32)
    if change == "always":
        counts.X[:, 3] = 1
    elif change == "never but once":
        counts.X[:, 3] = 0
        counts.X[5, 3] = 1
    else:
        counts.X[:] = counts.X[0]
        counts.X[:, :2] = [0, 1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* are all zero")
        warnings.filterwarnings("ignore", message=".*did not converge")
        fit(counts, likelihood="bernoulli", max_epochs=15)
    all_finite(counts)
    tools_work_on(counts)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
def test_a_count_out_of_all_proportion_is_fitted_or_refused(counts, likelihood):
    counts.X[5, 3] = 2**24
    before = counts.copy()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*did not converge")
            fit(counts, likelihood=likelihood, max_epochs=15)
    except FloatingPointError:
        assert_same(counts, before)
        return
    all_finite(counts)


@pytest.mark.parametrize("shape", [(3, 25), (40, 3), (2, 2)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.half_slow
def test_few_cells_or_genes_are_fitted(likelihood, shape):
    values = np.random.default_rng(0).poisson(3.0, shape) + 1.0
    if likelihood == "bernoulli":
        values = np.where(np.arange(shape[1]) == 0, 1.0, values > 3)
    adata = ad.AnnData(values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* are all zero")
        warnings.filterwarnings("ignore", message=".*did not converge")
        fit(adata, min(shape), likelihood=likelihood, max_epochs=15)
    all_finite(adata)


@pytest.mark.filterwarnings("ignore:X holds whole numbers")
def test_values_that_no_arithmetic_can_fit_are_named():
    values = 2**60 + np.random.default_rng(0).poisson(3, (60, 30)).astype(np.int64)
    values[7, 3] += 2**55
    adata = ad.AnnData(values)
    words = r"values, from 1.153e\+18 to 1.189e\+18, the one farthest out in cell '7', gene '3', differ"
    with pytest.raises(FloatingPointError, match=words):
        lfm.tl.fit(adata, 2, likelihood="normal", progress=False)
    assert not adata.uns
