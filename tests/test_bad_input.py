"""What users get wrong: an error that names the argument, what was found and the mend; and an AnnData left alone."""

from __future__ import annotations

import contextlib
import re
import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from scvi_lfm.data.checks import check_dtype
from scvi_lfm.inference.normal import engine as normal_engine
from scvi_lfm.tl import _predict

N, M = 30, 20


@pytest.fixture(scope="module")
def simulated():
    return lfm.datasets.simulate(N, M, 2)


@pytest.fixture
def clean(simulated):
    """Cells and genes, not fitted."""
    return simulated.copy()


@pytest.fixture(scope="module")
def fitted_once(simulated):
    adata = simulated.copy()
    index = np.arange(N)
    adata.obs["type"] = pd.Categorical(
        np.where(index < 10, "B cell", np.where(index < 11, "loner", "T cell")), ["B cell", "T cell", "loner", "unused"]
    )
    adata.obs["number"] = index % 3
    adata.obs["depth"] = np.linspace(0, 1, N)
    adata.obs["same"] = "all"
    adata.obs["holes"] = np.where(index < 3, None, "some")
    adata.obs["is_b"] = index < 10
    adata.layers["doubled"] = 2 * adata.X
    lfm.tl.fit(adata, 2, progress=False)
    return adata


@pytest.fixture
def fitted(fitted_once):
    return fitted_once.copy()


def assert_same(one: ad.AnnData, other: ad.AnnData) -> None:
    """Raise unless two AnnData hold the same bits in the same places."""
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    for container in ("obsm", "varm", "layers", "uns", "obsp", "varp"):
        same_value(dict(getattr(one, container)), dict(getattr(other, container)))
    same_value(one.X, other.X)


def same_value(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in one:
            same_value(one[name], other[name])
    elif sp.issparse(one):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    elif one is not None:
        np.testing.assert_array_equal(one, other)


@contextlib.contextmanager
def refused(error: type[Exception], message: str, *adatas: ad.AnnData):
    """The call within raises an error with these words, and leaves every AnnData as it was."""
    before = [adata.copy() for adata in adatas]
    with pytest.raises(error, match=re.escape(message)):
        yield
    for adata, copied in zip(adatas, before, strict=True):
        assert_same(adata, copied)


def with_values(adata, values):
    """The AnnData with other values, as a user would come by it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        return ad.AnnData(values, obs=adata.obs, var=adata.var)


def fit(adata, n_factors=2, **options):
    return lfm.tl.fit(adata, n_factors, **{"progress": False} | options)


def label(value: object) -> str:
    """A short name for a test, the same in every process."""
    return re.sub(r" at 0x\w+", "", str(value), flags=re.IGNORECASE)[:60]


# values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_nan_and_infinity(clean, form, value):
    values = np.maximum(clean.X, 0)
    values[:, 0] += 1
    values[7, 1] = values[3, 5] = values[29, 0] = value
    adata = with_values(clean, form(values))
    message = f"X holds 3 value(s) that are NaN, infinite or beyond the range of float32; the first is {value} "
    with refused(ValueError, f"{message}in cell 'cell_3', gene 'gene_5'. Remove or replace them first.", adata):
        fit(adata)


def test_nan_in_a_layer_and_in_genes_that_are_left_out(clean):
    clean.layers["values"] = clean.X.copy()
    clean.layers["values"][2, 4] = np.nan
    with refused(ValueError, "layers['values'] holds 1 value(s) that are NaN", clean):
        fit(clean, layer="values")
    fit(clean, layer="values", mask_var=clean.var_names != "gene_4")


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_values_beyond_float32(clean, dtype):
    values = clean.X.astype(dtype)
    values[4, 2] = 1e39
    with refused(ValueError, "the first is 1e+39 in cell 'cell_4', gene 'gene_2'", adata := with_values(clean, values)):
        fit(adata)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64, bool])
def test_raw_counts_warn_and_name_both_calls(clean, dtype):
    counts = np.random.default_rng(0).poisson(np.exp(np.maximum(clean.X, -1) / 2)) + 1
    adata = with_values(clean, (counts > 2 if dtype is bool else counts).astype(dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(adata, likelihood="normal")
    words = [str(warning.message) for warning in caught if "whole numbers" in str(warning.message)]
    assert len(words) == 1
    assert "likelihood='negative_binomial'" in words[0]
    assert "pass normalize=1e4" in words[0]
    assert all(warning.filename == __file__ for warning in caught)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64, bool])
def test_where_the_choice_is_left_open_counts_are_fitted_as_counts(clean, dtype):
    counts = np.random.default_rng(0).poisson(np.exp(np.maximum(clean.X, -1) / 2))
    adata = with_values(clean, (counts > 2 if dtype is bool else counts).astype(dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(adata, max_epochs=2, tol=1e6)
    assert not any("whole numbers" in str(warning.message) for warning in caught)
    assert adata.uns["lfm"]["params"]["likelihood"] == "negative_binomial"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("less", [5.0, -0.5])
def test_where_the_choice_is_left_open_what_cannot_be_counts_is_normal(clean, less):
    counts = np.random.default_rng(0).poisson(np.exp(np.maximum(clean.X, -1) / 2))
    adata = with_values(clean, (counts - less).astype(np.float32))
    fit(adata)
    assert adata.uns["lfm"]["params"]["likelihood"] == "normal"


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_empty_cells_and_genes_are_fitted_and_named(clean, form):
    values = np.abs(clean.X)
    values[[3, 8]], values[:, [2, 5, 9]] = 0, 0
    adata = with_values(clean, form(values))
    with pytest.warns(UserWarning, match="are all zero; they are fitted and get") as caught:
        fit(adata)
    assert sorted(str(warning.message)[:27] for warning in caught) == [
        "2 cell(s) of X are all zero",
        "3 gene(s) of X are all zero",
    ]
    assert np.isfinite(adata.obsm["X_lfm"]).all()


def test_explicit_zeros_count_as_zeros(clean):
    values = sp.csr_matrix(np.abs(clean.X))
    values.data[values.indices == 3] = 0
    adata = with_values(clean, values)
    with pytest.warns(UserWarning, match=r"1 gene\(s\) of X are all zero"):
        fit(adata)
    assert adata.X.nnz == N * M


@pytest.mark.parametrize("values", [np.zeros((N, M)), np.full((N, M), 3.5), sp.csr_matrix((N, M))], ids=type)
def test_constant_values(clean, values):
    adata = with_values(clean, values)
    with refused(ValueError, "Every value of X is the same: there is nothing to fit.", adata):
        fit(adata)


@pytest.mark.parametrize(("dtype", "name"), [(complex, "complex128"), (object, "object")], ids=["complex", "object"])
def test_dtypes_that_are_no_real_numbers(clean, dtype, name):
    adata = with_values(clean, clean.X.astype(dtype))
    with refused(TypeError, f"X has dtype {name}, which is not a real number. Convert it with .astype(", adata):
        fit(adata)


def test_a_masked_array_would_lose_its_mask(clean):
    adata = with_values(clean, np.ma.masked_array(clean.X, clean.X > 1))
    with refused(TypeError, "X is a masked array, and its mask would be lost. Fill it first", adata):
        fit(adata)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_numbers_are_fine(clean, dtype):
    values = (100 * clean.X).astype(dtype) if dtype is np.int8 else clean.X.astype(dtype)
    adata = with_values(clean, values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*whole numbers")
        fit(adata)
    assert adata.X.dtype == dtype


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_numpy_matrix_is_fine(clean):
    with pytest.warns(ad.ImplicitModificationWarning):
        clean.X = np.matrix(clean.X)
    fit(clean)


@pytest.mark.parametrize(("n_cells", "n_genes"), [(0, M), (1, M), (N, 1), (N, 0)])
def test_too_few_cells_or_genes(clean, n_cells, n_genes):
    adata = clean[:n_cells, :n_genes].copy()
    message = f"There are {n_cells} cell(s) and {n_genes} gene(s) to fit; a fit needs at least two of each."
    with refused(ValueError, message, adata):
        fit(adata, 1)


@pytest.mark.parametrize("shape", [(3, 20), (30, 3)])
def test_few_cells_or_genes_are_fitted(clean, shape):
    adata = clean[: shape[0], : shape[1]].copy()
    fit(adata, min(shape))
    assert np.isfinite(adata.obsm["X_lfm"]).all()
    assert np.isfinite(adata.varm["lfm_sd"]).all()


def test_no_x(clean):
    adata = ad.AnnData(obs=clean.obs, var=clean.var, layers={"lognorm": clean.X})
    message = "The AnnData has no X. Pass layer= with the name of a layer (there are: 'lognorm')."
    with refused(ValueError, message, adata):
        fit(adata)
    fit(adata, layer="lognorm")


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_duplicate_names(clean, axis):
    names = list(getattr(clean, f"{axis}_names"))
    setattr(clean, f"{axis}_names", [names[1], *names[1:3], names[2], *names[4:]])
    message = f"{axis}_names are not unique: 2 name(s) repeat, first {names[1]!r}."
    with refused(ValueError, f"{message} Call adata.{axis}_names_make_unique() first.", clean):
        fit(clean)


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_that_are_no_strings(clean, axis):
    frame = getattr(clean, axis)
    frame.index = np.arange(len(frame)) + 0.5
    message = f"{axis}_names are not strings (found floating): call adata.{axis}_names = adata.{axis}_names.astype(str)"
    with refused(TypeError, message):
        fit(clean)
    assert "lfm" not in clean.uns


@pytest.mark.filterwarnings("ignore:(?s).*expects .var.index to contain strings")
def test_categorical_names_are_fine(clean):
    clean.var_names = pd.CategoricalIndex(clean.var_names)
    fit(clean)
    assert len(lfm.tl.similar_genes(clean, "gene_1")) == M - 1


def test_forms_that_are_not_read():
    with pytest.raises(TypeError, match=r"X is a builtins.*what is read are numpy arrays.*csr_array\(values\)"):
        check_dtype([[1.0]], "X")


# arguments of fit

BAD_ARGUMENTS = [
    ({"n_factors": -1}, ValueError, "`n_factors` must be at least 0, found -1."),
    ({"n_factors": 0, "engine": "pyro"}, ValueError, "`n_factors` must be at least 1, found 0."),
    ({"n_factors": -3}, ValueError, "`n_factors` must be at least 0, found -3."),
    ({"n_factors": 21}, ValueError, "`n_factors` is 21, but 30 cells x 20 genes to fit allow at most 20."),
    (
        {"n_factors": "auto", "engine": "pyro"},
        ValueError,
        "n_factors='auto' belongs to engine='natural_gradient', found",
    ),
    (
        {"n_factors": "auto", "prior_scales": {"B": 0.5}},
        ValueError,
        "found prior_scales with 'B'. Leave it out, or pass",
    ),
    ({"n_factors": "auto", "prior_scales": {"A": [1, 2]}}, ValueError, "with 'one A for each factor'. Leave it out"),
    ({"n_factors": 2.5}, TypeError, "`n_factors` must be a whole number or 'auto', found 2.5 of type float."),
    ({"n_factors": True}, TypeError, "`n_factors` must be a whole number or 'auto', found True of type bool."),
    ({"n_factors": "2"}, TypeError, "`n_factors` must be a whole number or 'auto', found '2' of type str."),
    ({"layer": "lognrm"}, KeyError, "There is no layer 'lognrm'. There are none."),
    ({"layer": "X"}, KeyError, "There is no layer 'X'. X is read where `layer` is left out."),
    ({"layer": "raw"}, KeyError, "adata.layers['raw'] = adata.raw[:, adata.var_names].X."),
    ({"layer": 1}, TypeError, "`layer` must be the name of a layer or None, found 1."),
    (
        {"likelihood": "gamma"},
        ValueError,
        "`likelihood` must be one of 'auto', 'normal', 'student_t', 'poisson', 'negative_binomial', 'bernoulli', "
        "'ordinal', found "
        "'gamma'.",
    ),
    ({"noise": "none"}, ValueError, "`noise` must be one of 'shared', 'gene', 'cell_gene', found 'none'."),
    ({"family": "full"}, ValueError, "`family` must be one of 'row_block', 'mean_field', found 'full'."),
    ({"engine": "svi"}, ValueError, "`engine` must be one of 'natural_gradient', 'pyro', found 'svi'."),
    ({"guide": "row_block"}, ValueError, "`guide` belongs to engine='pyro', and engine is 'natural_gradient'."),
    ({"guide": "flow", "engine": "pyro"}, ValueError, "`guide` must be one of 'row_block', 'mean_field', found 'flow'"),
    ({"learning_rate": 0.1}, ValueError, "`learning_rate` belongs to engine='pyro', and engine is 'natural_gradient'"),
    ({"learning_rate": 0, "engine": "pyro"}, ValueError, "`learning_rate` must be above 0, found 0."),
    ({"learning_rate": "1", "engine": "pyro"}, TypeError, "`learning_rate` must be a number, found '1' of type str."),
    ({"batch_size": 0}, ValueError, "`batch_size` must be at least 2, found 0."),
    ({"batch_size": 16.5}, TypeError, "`batch_size` must be a whole number, found 16.5 of type float."),
    ({"batch_size": 4, "n_factors": 5}, ValueError, "`batch_size` 4 splits 30 cells into batches of 3 or more, too"),
    ({"max_epochs": 0}, ValueError, "`max_epochs` must be above 0, found 0."),
    ({"max_epochs": -0.5}, ValueError, "`max_epochs` must be above 0, found -0.5."),
    ({"max_epochs": np.nan}, ValueError, "`max_epochs` must be above 0, found nan."),
    ({"max_epochs": np.inf}, ValueError, "`max_epochs` must be finite, found inf."),
    ({"max_epochs": "1"}, TypeError, "`max_epochs` must be a number, found '1' of type str."),
    ({"tol": 0}, ValueError, "`tol` must be above 0, found 0."),
    ({"tol": -1e-3}, ValueError, "`tol` must be above 0, found -0.001."),
    ({"tol": np.nan}, ValueError, "`tol` must be above 0, found nan."),
    ({"tol": "small"}, TypeError, "`tol` must be a number, found 'small' of type str."),
    ({"rng": None}, TypeError, "`rng` must be an int or a numpy.random.Generator, found None of type NoneType."),
    ({"rng": 1.5}, TypeError, "`rng` must be an int or a numpy.random.Generator, found 1.5 of type float."),
    ({"rng": True}, TypeError, "`rng` must be an int or a numpy.random.Generator, found True of type bool."),
    ({"rng": torch.Generator()}, TypeError, "`rng` must be an int or a numpy.random.Generator, found <torch"),
    ({"rng": np.random.RandomState(0)}, TypeError, "`rng` must be an int or a numpy.random.Generator, found Random"),
    ({"rng": -1}, ValueError, "`rng` must be at least 0, found -1."),
    ({"device": "tpu"}, ValueError, "`device` 'tpu' is not a device that torch knows; pass 'auto', 'cpu', 'cuda'"),
    ({"device": "mps"}, ValueError, "`device` 'mps' is not supported; pass 'auto', 'cpu' or 'cuda'."),
    ({"device": 0}, TypeError, "`device` must be a string such as 'auto', 'cpu' or 'cuda', found 0."),
    ({"key_added": "a/b"}, ValueError, "`key_added` must not be empty and must not hold '/', found 'a/b'."),
    ({"key_added": ""}, ValueError, "`key_added` must not be empty and must not hold '/', found ''."),
    ({"key_added": None}, TypeError, "`key_added` must be a string, found None."),
    ({"prior_scales": [1.0]}, TypeError, "`prior_scales` must be a dict such as {'a': 0.5, 'sigma': 1.0}, found list"),
    ({"prior_scales": {"c": 1}}, ValueError, "`prior_scales` has no scale 'c'; the scales are 'a', 'A', 'b', 'B',"),
    ({"prior_scales": {"a": 0}}, ValueError, "`prior_scales['a']` must be above 0, found 0."),
    ({"prior_scales": {"sigma": -1}}, ValueError, "`prior_scales['sigma']` must be above 0, found -1."),
    ({"prior_scales": {"b": np.inf}}, ValueError, "`prior_scales['b']` must be finite, found inf."),
    ({"prior_scales": {"a": "1"}}, TypeError, "`prior_scales['a']` must be a number, found '1' of type str."),
    ({"prior_scales": {"sigma": [1, 2]}}, TypeError, "`prior_scales['sigma']` must be a number, found [1, 2]"),
    ({"prior_scales": {"A": [1, 2, 3]}}, ValueError, "`prior_scales['A']` must be one positive number or one for each"),
    ({"prior_scales": {"B": [1, 0]}}, ValueError, "`prior_scales['B']` must be one positive number or one for each"),
    ({"mask_var": np.ones(3, dtype=bool)}, ValueError, "for each of the 20 rows of var, found shape (3,)."),
    ({"mask_var": np.ones((M, 1), dtype=bool)}, ValueError, "for each of the 20 rows of var, found shape (20, 1)."),
    ({"mask_var": np.ones(M)}, TypeError, "`mask_var` must be boolean, without missing values, found dtype float64."),
    (
        {"mask_var": ["gene_1"]},
        TypeError,
        "`mask_var` must be boolean, without missing values, found dtype <U6. Of names, pass",
    ),
    ({"mask_var": [0, 2]}, TypeError, "of positions, np.isin(np.arange(adata.n_vars), positions)."),
    ({"mask_var": pd.array([True, None] * 10, dtype="boolean")}, TypeError, "`mask_var` must be boolean, without miss"),
    ({"mask_var": "sigmas"}, KeyError, "`mask_var`: var has no column 'sigmas'. Did you mean 'sigma'?"),
    ({"mask_var": "sigma"}, TypeError, "`mask_var` must be boolean, without missing values, found dtype float64."),
    (
        {"mask_var": np.zeros(M, dtype=bool)},
        ValueError,
        "0 gene(s) to fit; a fit needs at least two of each. `mask_var`",
    ),
    ({"mask_var": np.arange(M) < 3, "n_factors": 4}, ValueError, "but 30 cells x 3 genes to fit allow at most 3."),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_ARGUMENTS, ids=label)
def test_arguments_of_fit(clean, options, error, message):
    with refused(error, message, clean):
        fit(clean, **options)


def test_near_matches_of_a_layer(clean):
    clean.layers["lognorm"] = clean.X
    with refused(KeyError, "There is no layer 'lognrm'. Did you mean 'lognorm'?", clean):
        fit(clean, layer="lognrm")


def test_a_mask_in_another_order(clean):
    shuffled = pd.Series(True, index=clean.var_names[::-1])
    with refused(ValueError, "`mask_var` is a Series whose index is not var_names. Reorder it, or pass", clean):
        fit(clean, mask_var=shuffled)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")], ids=str)
def test_cuda_asked_for_and_absent(clean, fitted, device):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    message = "was asked for, but torch finds no CUDA device here; pass device='cpu' or 'auto'."
    for adata, call in ((clean, fit), (fitted, lfm.tl.anomalies)):
        with refused(ValueError, message, adata):
            call(adata, device=device)
    with refused(ValueError, message, clean, fitted):
        lfm.tl.project(clean, fitted, device=device)


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        ("cells.h5ad", "Read it first: anndata.read_h5ad(path), or anndata.read_zarr(path)."),
        (pd.DataFrame({"a": [1.0]}), "Make it one first: anndata.AnnData(values), cells by genes."),
        (sp.csr_array((2, 3)), "Make it one first: anndata.AnnData(values), cells by genes."),
        (SimpleNamespace(mod={"rna": None}), "Pass one of its modalities, such as mdata.mod['rna']."),
    ],
    ids=["path", "table", "matrix", "modalities"],
)
def test_what_an_anndata_is_made_of(value, mend):
    with pytest.raises(TypeError, match=re.escape(mend)):
        lfm.tl.fit(value)


def test_the_calls_that_mend_a_layer_or_a_mask(clean):
    """Each error's own advice, followed."""
    clean.raw = clean.copy()
    expected = fit(clean, mask_var=np.arange(M) < 5, copy=True).varm["lfm"]
    clean.layers["raw"] = clean.raw[:, clean.var_names].X
    for mask in (clean.var_names.isin(clean.var_names[:5]), np.isin(np.arange(clean.n_vars), range(5))):
        found = fit(clean, layer="raw", mask_var=mask, copy=True)
        np.testing.assert_array_equal(found.varm["lfm"], expected)


@pytest.mark.parametrize("value", [[[1, 2]], pd.DataFrame({"a": [1.0]}), "cells.h5ad", None], ids=type)
def test_no_anndata(value, fitted):
    message = f"must be an AnnData, found {type(value).__name__}."
    calls = [
        lfm.tl.fit,
        lambda adata: lfm.tl.rank_genes(adata, "type"),
        lambda adata: lfm.tl.rank_cells(adata, "gene_1"),
        lambda adata: lfm.tl.similar_genes(adata, "gene_1"),
        lambda adata: lfm.tl.predict(adata, layer_added="eta"),
        lambda adata: lfm.tl.sample_posterior(adata, 2),
        lfm.tl.anomalies,
        lambda adata: lfm.tl.project(adata, fitted),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"`adata` {message}"):
            call(value)
    with pytest.raises(TypeError, match=f"`reference` {message}"):
        lfm.tl.project(fitted, value)


@pytest.mark.parametrize("moment", ["sweep", "finish", "fit_without_factors"])
def test_interrupted_by_the_user(clean, monkeypatch, moment):
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(normal_engine, moment, interrupted)
    before = clean.copy()
    with pytest.raises(KeyboardInterrupt):
        fit(clean)
    assert calls
    assert_same(clean, before)


def test_a_fit_that_does_not_converge_is_stored_and_says_so(clean):
    with pytest.warns(UserWarning, match="Pass a larger max_epochs, or a larger tol to accept this"):
        fit(clean, max_epochs=1, tol=1e-12)
    assert not clean.uns["lfm"]["converged"]


@pytest.mark.parametrize(
    "options",
    [
        {"n_factors": np.int64(2)},
        {"batch_size": np.int32(10), "tol": 1.0},
        {"rng": np.uint8(3)},
        {"tol": np.float32(0.01)},
    ],
    ids=str,
)
def test_numpy_numbers_are_fine(clean, options, tmp_path):
    fit(clean, **options)
    clean.write_h5ad(tmp_path / "fit.h5ad")


# the tools on a fit

BAD_CALLS = {
    "rank_genes": [
        ({}, ValueError, "Pass either `groupby` (a column of obs) or `mask_obs` (the cells), and not both."),
        ({"groupby": "type", "mask_obs": "is_b"}, ValueError, "Pass either `groupby` (a column of obs) or `mask_obs`"),
        ({"groupby": "typ"}, KeyError, "obs has no column 'typ'. Did you mean 'type'?"),
        ({"groupby": ["type"]}, TypeError, "`groupby` must be the name of a column of obs, found ['type']."),
        ({"groupby": "depth"}, TypeError, "obs['depth'] holds real numbers (dtype float64), and groups are needed."),
        ({"groupby": "holes"}, ValueError, "obs['holes'] is missing in 3 cell(s), first 'cell_0'. Drop them"),
        ({"groupby": "type", "groups": ["Bcell"]}, KeyError, "obs['type'] has no group 'Bcell' with cells in it. Did"),
        ({"groupby": "type", "groups": "T-cell"}, KeyError, "Did you mean 'T cell', 'B cell'?"),
        ({"groupby": "type", "groups": ["unused"]}, KeyError, "obs['type'] has no group 'unused' with cells in it."),
        ({"groupby": "type", "groups": []}, ValueError, "`groups` names none of the groups of obs['type']."),
        ({"groupby": "type", "groups": 3}, TypeError, "`groups` must be one or several, in a list, found 3"),
        ({"groupby": "number", "groups": [7]}, KeyError, "no group '7' with cells in it. There are: '0', '1', '2'."),
        ({"groupby": "type", "reference": "NK"}, KeyError, "obs['type'] has no group 'NK' with cells in it."),
        ({"groupby": "type", "reference": "unused"}, KeyError, "obs['type'] has no group 'unused' with cells in it."),
        ({"groupby": "type", "groups": ["loner"], "reference": "loner"}, ValueError, "`reference` 'loner' is one of"),
        ({"groupby": "same"}, ValueError, "Group 'all' holds every cell: there is no rest to compare with."),
        ({"groupby": "same", "reference": "all"}, ValueError, "No group of obs['same'] is left to rank against 'all'."),
        ({"mask_obs": np.zeros(N, dtype=bool)}, ValueError, "Group 'selected' holds no cell: there is nothing to"),
        ({"mask_obs": np.ones(N, dtype=bool)}, ValueError, "Group 'selected' holds every cell: there is no rest"),
        ({"mask_obs": np.ones(3, dtype=bool)}, ValueError, "for each of the 30 rows of obs, found shape (3,)."),
        ({"mask_obs": np.arange(5)}, TypeError, "`mask_obs` must be boolean, without missing values, found dtype int"),
        ({"mask_obs": "is_c"}, KeyError, "`mask_obs`: obs has no column 'is_c'. Did you mean 'is_b'?"),
        (
            {"mask_obs": "is_b", "groups": ["a"]},
            ValueError,
            "With `mask_obs` there are no other groups: leave `groups`",
        ),
        ({"mask_obs": "is_b", "reference": "T cell"}, ValueError, "and pass reference='rest' or None."),
        ({"groupby": "type", "key": "lfn"}, KeyError, "uns has no 'lfn'. Did you mean 'lfm'? Run lfm.tl.fit(adata)"),
        ({"groupby": "type", "key_added": "a/b"}, ValueError, "`key_added` must not be empty and must not hold '/'"),
        ({"groupby": "type", "key_added": "lfm"}, ValueError, "`key_added`: uns['lfm'] holds a fit, which would be"),
    ],
    "rank_cells": [
        ({"genes": "gene1"}, KeyError, "`genes`: var_names has no 'gene1'. Did you mean 'gene_1'"),
        ({"genes": ["gene_1", "CD8A"]}, KeyError, "`genes`: var_names has no 'CD8A'. There are: 'gene_0', 'gene_1',"),
        ({"genes": []}, ValueError, "`genes` names nothing; pass at least one name of var_names."),
        ({"genes": 3}, TypeError, "`genes` must be one or several, in a list, found 3 of type int."),
        ({"genes": [0, 1]}, KeyError, "`genes`: var_names has no 0."),
        (
            {"genes": np.arange(M) < 3},
            TypeError,
            "`genes` must hold names, found a boolean mask. Pass adata.var_names[",
        ),
        ({"genes": "gene_1", "key": "x"}, KeyError, "uns has no 'x'."),
        ({"genes": "gene_1", "key_added": ""}, ValueError, "`key_added` must not be empty and must not hold '/'"),
    ],
    "similar_genes": [
        ({"gene": "gene1"}, KeyError, "`gene`: var_names has no 'gene1'. Did you mean 'gene_1'"),
        ({"gene": ["gene_1"]}, TypeError, "`gene` must be one name of var_names, found ['gene_1']."),
        ({"gene": "gene_1", "n_top": 0}, ValueError, "`n_top` must be at least 1, found 0."),
        ({"gene": "gene_1", "n_top": 2.5}, TypeError, "`n_top` must be a whole number, found 2.5 of type float."),
        ({"gene": "gene_1", "key": 3}, TypeError, "`key` must be a string, found 3."),
    ],
    "predict": [
        (
            {},
            ValueError,
            "Pass `obs_names` and `var_names` (the entries to predict), or `layer_added` for all of them.",
        ),
        ({"obs_names": "cell_1"}, ValueError, "Pass `obs_names` and `var_names` (the entries to predict), or"),
        (
            {"obs_names": "cell1", "var_names": "gene_1"},
            KeyError,
            "`obs_names`: obs_names has no 'cell1'. Did you mean",
        ),
        ({"obs_names": [], "var_names": "gene_1"}, ValueError, "`obs_names` names nothing; pass at least one name"),
        ({"obs_names": 1, "var_names": "gene_1"}, TypeError, "`obs_names` must be one or several, in a list, found 1"),
        ({"obs_names": [True] * N, "var_names": "gene_1"}, TypeError, "Pass adata.obs_names[mask]."),
        ({"obs_names": ["cell_1"] * 2, "var_names": "gene_1", "pairs": True}, ValueError, "equally long: found 2, 1."),
        ({"obs_names": "cell_1", "layer_added": "eta"}, ValueError, "`layer_added` writes every cell and gene: leave"),
        ({"layer_added": "a/b"}, ValueError, "`layer_added` must not be empty and must not hold '/', found 'a/b'."),
    ],
    "sample_posterior": [
        ({"n_samples": 0}, ValueError, "`n_samples` must be at least 1, found 0."),
        ({"n_samples": 2.5}, TypeError, "`n_samples` must be a whole number, found 2.5 of type float."),
        ({"n_samples": 2, "rng": None}, TypeError, "`rng` must be an int or a numpy.random.Generator, found None"),
    ],
    "anomalies": [
        ({"direction": "sideways"}, ValueError, "`direction` must be one of 'both', 'up', 'down', found 'sideways'."),
        ({"fdr": 0}, ValueError, "`fdr` must lie between 0 and 1, found 0."),
        ({"fdr": 1}, ValueError, "`fdr` must lie between 0 and 1, found 1."),
        ({"fdr": "0.1"}, TypeError, "`fdr` must be a number, found '0.1' of type str."),
        ({"max_entries": 0}, ValueError, "`max_entries` must be at least 1, found 0."),
        ({"max_entries": 100_000.5}, TypeError, "`max_entries` must be a whole number, found 100000.5 of type float."),
        ({"layer": "double"}, KeyError, "There is no layer 'double'. Did you mean 'doubled'?"),
        ({"key": "x"}, KeyError, "uns has no 'x'."),
        ({"key_added": "lfm"}, ValueError, "`key_added`: uns['lfm'] holds a fit, which would be overwritten."),
        ({"device": "tpu"}, ValueError, "`device` 'tpu' is not a device that torch knows"),
    ],
}


@pytest.mark.parametrize(
    ("tool", "arguments", "error", "message"),
    [(tool, *row) for tool, rows in BAD_CALLS.items() for row in rows],
    ids=label,
)
def test_arguments_of_the_tools(fitted, tool, arguments, error, message):
    with refused(error, message, fitted):
        getattr(lfm.tl, tool)(fitted, **arguments)


@pytest.mark.parametrize(
    ("quantiles", "error", "message"),
    [
        ([1.5], ValueError, "`quantiles` must lie between 0 and 1, found 1.5."),
        ([0], ValueError, "`quantiles` must lie between 0 and 1, found 0."),
        ([0.5, "high"], TypeError, "`quantiles` must be a number, found 'high' of type str."),
        (0.5, TypeError, "`quantiles` must be one or several, in a list, found 0.5 of type float."),
        (None, TypeError, "`quantiles` must be one or several, in a list, found None of type NoneType."),
    ],
)
def test_quantiles(fitted, quantiles, error, message):
    with refused(error, message, fitted):
        lfm.tl.predict(fitted, obs_names="cell_1", var_names="gene_1", quantiles=quantiles)


def test_a_layer_above_one_gib(fitted, monkeypatch):
    monkeypatch.setattr(_predict, "MAX_LAYER_BYTES", 100)
    with refused(ValueError, "more than 1 GiB. Pass obs_names= and var_names= for the entries you need, or", fitted):
        lfm.tl.predict(fitted, layer_added="eta")


def test_a_group_of_one_cell_is_fine(fitted):
    lfm.tl.rank_genes(fitted, "type")
    sd = {group: fitted.uns["rank_genes_lfm"]["sd"][group].mean() for group in ("loner", "B cell")}
    assert sd["loner"] > 1.5 * sd["B cell"]


def test_genes_left_out_of_the_fit(clean):
    fit(clean, mask_var=clean.var_names != "gene_4")
    message = "gene 'gene_4' was left out of the fit by mask_var."
    for call in (
        lambda: lfm.tl.rank_cells(clean, ["gene_1", "gene_4"]),
        lambda: lfm.tl.similar_genes(clean, "gene_4"),
        lambda: lfm.tl.predict(clean, obs_names="cell_1", var_names="gene_4"),
    ):
        with refused(ValueError, message, clean):
            call()
    left_out = clean[:, ["gene_4"]].copy()
    with refused(ValueError, "None of the 1 gene(s) of `adata` was fitted", left_out):
        lfm.tl.anomalies(left_out)


@pytest.mark.parametrize("shape", [(0, M), (N, 0)])
def test_an_empty_slice_of_a_fit(fitted, shape):
    empty = fitted[: shape[0], : shape[1]].copy()
    message = f"The AnnData has {shape[0]} cell(s) and {shape[1]} gene(s); at least one of each is needed."
    with refused(ValueError, message, empty):
        lfm.tl.anomalies(empty)
    with refused(ValueError, message, empty):
        lfm.tl.project(empty, fitted, key_added="new")


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_names_that_repeat_since_the_fit(fitted):
    for axis, call in (
        ("obs", lambda adata: lfm.tl.predict(adata, obs_names="same", var_names="gene_1")),
        ("var", lambda adata: lfm.tl.rank_cells(adata, "same")),
        ("var", lambda adata: lfm.tl.similar_genes(adata, "same")),
        ("var", lambda adata: lfm.tl.project(fitted.copy(), adata, key_added="new")),
        ("obs", lfm.tl.anomalies),
    ):
        adata = fitted.copy()
        setattr(adata, f"{axis}_names", ["same"] * len(getattr(adata, axis)))
        with refused(ValueError, f"{axis}_names are not unique: 1 name(s) repeat, first 'same'.", adata):
            call(adata)


def test_another_layer_than_that_of_the_fit_warns(fitted):
    message = r"layer='doubled' is not what the fit read \(X\); results mean little unless both are on the same scale"
    new = fitted.copy()
    with pytest.warns(UserWarning, match=message) as caught:
        lfm.tl.anomalies(fitted, layer="doubled")
    with pytest.warns(UserWarning, match=message):
        lfm.tl.project(new, fitted, layer="doubled", key_added="placed")
    assert {warning.filename for warning in caught} == {__file__}
    assert fitted.uns["lfm_anomaly"]["params"]["layer"] == "doubled"


def test_the_layer_of_the_fit_is_absent(fitted, clean):
    fit(fitted, layer="doubled")
    message = (
        "The fit read layers['doubled'], which `adata` does not have. There are none. Put values on the same scale"
    )
    with refused(KeyError, message, clean, fitted):
        lfm.tl.project(clean, fitted)
    del fitted.layers["doubled"]
    with refused(KeyError, message, fitted):
        lfm.tl.anomalies(fitted)


def test_a_nan_since_the_fit(fitted):
    fitted.X[4, 2] = np.nan
    with refused(ValueError, "X holds 1 value(s) that are NaN", fitted):
        lfm.tl.anomalies(fitted)


def test_project_without_shared_genes(clean, fitted):
    clean.var_names = [f"ENSG{j:05d}" for j in range(M)]
    message = "No gene of the reference's fit is in `adata`: check that var_names of both are of one kind."
    with refused(ValueError, message, clean, fitted):
        lfm.tl.project(clean, fitted)


def test_project_with_some_shared_genes_warns(clean, fitted):
    new = clean[:, :15].copy()
    with pytest.warns(
        UserWarning, match="5 of 20 fitted genes are absent from `adata` and taken as unobserved"
    ) as caught:
        lfm.tl.project(new, fitted)
    assert {warning.filename for warning in caught} == {__file__}


def test_project_of_raw_counts(clean, fitted):
    clean.X = np.round(np.abs(clean.X))
    with refused(ValueError, "X holds no negative value", clean, fitted):
        lfm.tl.project(clean, fitted)


def test_project_onto_what_was_not_fitted(clean, fitted):
    with refused(KeyError, "uns has no 'lfm'. There are: 'mu'. Run lfm.tl.fit(adata) first.", clean, fitted):
        lfm.tl.project(fitted, clean, key_added="placed")


FIELDS = [("obs", "lfm_a"), ("obsm", "X_lfm"), ("var", "lfm_b"), ("var", "lfm_sigma"), ("varm", "lfm"), ("uns", "lfm")]


@pytest.mark.parametrize(("container", "name"), FIELDS)
def test_a_field_is_missing(fitted, container, name):
    del getattr(fitted, container)[name]
    with refused(KeyError, f"{container} has no {name!r}.", fitted):
        lfm.tl.rank_genes(fitted, "type")
    with pytest.raises(KeyError, match=r"[Rr]un lfm\.tl\.fit\(adata\) first"):
        lfm.tl.rank_cells(fitted, "gene_1")


PARTS = ("mu", "sigma", "gene_eig", "prior_cell_mean", "prior_cell_cov", "prior_gene_mean", "prior_gene_cov")


@pytest.mark.parametrize("name", ["params", "cell_cov", "gene_basis", *PARTS])
def test_a_part_of_uns_is_missing(fitted, name):
    del fitted.uns["lfm"][name]
    message = f"uns['lfm'] has lost {name!r}, which lfm.tl.fit wrote. Were AnnData joined?"
    if name == "params":
        message = "uns['lfm'] was not written by lfm.tl.fit: it has no 'params'."
    with refused(KeyError, message, fitted):
        lfm.tl.rank_genes(fitted, "type")


def test_the_embedding_was_overwritten(fitted):
    fitted.obsm["X_lfm"] = np.zeros((N, 50))
    with refused(ValueError, "obsm['X_lfm'] has shape (30, 50), but the fit has 2 factors. It was overwritten", fitted):
        lfm.tl.rank_genes(fitted, "type")


def test_results_of_another_tool_under_the_key(fitted):
    fitted.uns["pca"] = {"variance": np.ones(3)}
    with refused(KeyError, "uns['pca'] was not written by lfm.tl.fit: it has no 'params'.", fitted):
        lfm.tl.rank_genes(fitted, "type", key="pca")
