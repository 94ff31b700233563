"""What fits store is what the schema says: nothing else, in its shapes and dtypes, and nothing of an earlier fit."""

from __future__ import annotations

import warnings
from dataclasses import fields
from functools import cache
from unittest import mock

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from scvi_lfm._keys import FitKeys, fit_keys
from scvi_lfm.posterior import read_fit, write_fit
from scvi_lfm.posterior.store import write
from scvi_lfm.posterior.store.layout import Layout
from scvi_lfm.posterior.store.schema import FIELD, FIELDS, FitKind, fit_places, record_for_new_cells

N, M, R = 40, 30, 2
ALL_FITS = ["obsm X_lfm", "obsm X_lfm_sd", "obs lfm_a", "obs lfm_a_sd", "varm lfm", "varm lfm_sd", "var lfm_b"]
ALL_FITS += ["var lfm_b_sd", "mu", "prior_cell_mean", "prior_cell_cov", "prior_gene_mean", "prior_gene_cov"]
ALL_FITS += ["params", "variance_ratio", "elbo", "converged", "seconds", "version", "values"]
NORMAL = ["var lfm_sigma", "sigma"]
ONE_BASIS, ONE_COV = ["gene_basis", "gene_eig"], ["cell_cov"]
OWN = ["obsm lfm_cov", "varm lfm_cov"]
COUNTS, TOTALS = ["obs lfm_size_factor", *OWN], ["total_counts", "expected_counts"]
KNOWN = ["varm lfm_beta", "varm lfm_beta_sd", "covariates"]
# fits, by likelihood and options, and what each has besides what all have
KINDS = {
    "normal": ("normal", {}, [*NORMAL, *ONE_BASIS, *ONE_COV]),
    "noise of each gene": ("normal", {"noise": "gene"}, [*NORMAL, *ONE_BASIS, *ONE_COV]),
    "noise of each cell": (
        "normal",
        {"noise": "cell_gene"},
        [*NORMAL, *ONE_BASIS, "obs lfm_sigma", "cell_basis", "cell_eig"],
    ),
    "normal, covariates": ("normal", {"covariates": "odd"}, [*NORMAL, *ONE_BASIS, *ONE_COV, *KNOWN]),
    "normal, held out": ("normal", {"held_out": "test"}, [*NORMAL, *OWN, "by_row", "held_out"]),
    "normal, stored entries": ("normal", {"observed": "stored"}, [*NORMAL, *OWN, "by_row"]),
    "student t": (
        "student_t",
        {"engine": "pyro", "max_epochs": 2},
        [*NORMAL, *ONE_BASIS, *ONE_COV, "df"],
    ),
    "negative binomial": ("negative_binomial", {}, [*COUNTS, *TOTALS, "var lfm_theta"]),
    "poisson": ("poisson", {}, [*COUNTS, *TOTALS]),
    "bernoulli": ("bernoulli", {}, [*COUNTS, *TOTALS]),
    "poisson, held out": ("poisson", {"held_out": "test"}, [*COUNTS, *TOTALS, "held_out"]),
    "poisson, stored entries": ("poisson", {"observed": "stored"}, [*COUNTS, *TOTALS]),
    "poisson, covariates": ("poisson", {"covariates": "odd", "size_factors": "depth"}, [*COUNTS, *KNOWN]),
    "levels": ("ordinal", {}, [*OWN, "levels"]),
    "levels, stored entries": ("ordinal", {"observed": "stored"}, [*OWN, "levels"]),
    "number chosen": ("normal", {"n_factors": "auto"}, [*NORMAL, *ONE_BASIS, *ONE_COV, "rank"]),
    "level": ("normal", {"mu": 1000.0}, [*NORMAL, *ONE_BASIS, *ONE_COV, "level"]),
    "normalised": ("normal", {"normalize": 1e4}, [*NORMAL, *ONE_BASIS, *ONE_COV, "obs lfm_total"]),
    "factors that are off": ("normal", {"n_factors": 6}, [*NORMAL, *ONE_BASIS, *ONE_COV]),
}


@pytest.fixture(scope="module")
def fit_of_kind(fit_of):
    """A copy of a fit by its name in `KINDS`."""

    @cache
    def made(kind):
        likelihood, options, _ = KINDS[kind]
        if not {"engine", "n_factors", "mu", "normalize", "size_factors"} & set(options):
            return fit_of(likelihood, **options)
        options, adata = (
            dict(options),
            fit_of("poisson" if likelihood == "poisson" or "normalize" in options else "normal"),
        )
        without_fit(adata)
        adata.obs["depth"] = np.linspace(0.5, 1.5, N)
        adata.X = adata.X + options.pop("mu", 0.0) if "mu" in options else adata.X
        # a last ELBO of few draws is a number too
        few_draws = mock.patch("scvi_lfm.inference.pyro.student_t.MOST_DRAWS", 8)
        with warnings.catch_warnings(), few_draws:
            warnings.filterwarnings("ignore", "The fit did not converge")
            lfm.tl.fit(adata, options.pop("n_factors", R), likelihood=likelihood, progress=False, **options)
        return adata

    return lambda kind: made(kind).copy()


def without_fit(adata):
    for container in ("obs", "var", "obsm", "varm", "uns"):
        frame = getattr(adata, container)
        for name in [name for name in frame if "lfm" in name.split("_")]:
            del frame[name]


def stored(adata):
    """All fields of the fit: those in uns by their name, others with their container."""
    found = {
        f"{container} {name}": getattr(adata, container)[name]
        for container in ("obs", "var", "obsm", "varm")
        for name in getattr(adata, container)
        if "lfm" in name.split("_")
    }
    return found | dict(adata.uns["lfm"])


def label(field):
    return field.name if field.frame == "uns" else f"{field.frame} {field.key('lfm')}"


def same(one, other):
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_stores_what_the_schema_says_of_its_kind(fit_of_kind, kind):
    adata = fit_of_kind(kind)
    fit = FitKind.of(adata.uns["lfm"], own_cov="by_row" in KINDS[kind][2], cell_cov_kept=True)
    expected = {*ALL_FITS, *KINDS[kind][2]}
    assert set(stored(adata)) == expected
    assert {label(field) for field in FIELDS if field.due(fit)} == expected


def test_some_fit_has_each_field_and_some_have_not_those_with_a_condition():
    assert {label(field) for field in FIELDS} == {*ALL_FITS, *(name for *_, more in KINDS.values() for name in more)}
    assert {label(field) for field in FIELDS if field.when == "always"} == set(ALL_FITS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_stores_the_shapes_and_dtypes_of_the_schema(fit_of_kind, kind):
    adata = fit_of_kind(kind)
    r, p = adata.obsm["X_lfm"].shape[1], len(adata.uns["lfm"].get("covariates", ()))
    k = 1 + p + r
    sizes = {"n": N, "m": M, "r": r, "p": p, "k": k}
    sizes |= {"cell_packed": (r + 1) * (r + 2) // 2, "gene_packed": k * (k + 1) // 2}
    by_label = {label(field): field for field in FIELDS}
    for name, values in stored(adata).items():
        field = by_label[name]
        if isinstance(field.dtype, str):
            assert np.shape(values) == tuple(sizes[axis] for axis in field.shape), name
            assert values.dtype == field.dtype, name
        else:
            assert isinstance(values, field.dtype), name
            assert field.shape == ()


@pytest.mark.parametrize("after", KINDS)
def test_nothing_is_left_of_an_earlier_fit(fit_of_kind, after):
    fresh = fit_of_kind(after)
    fit, uns = read_fit(fresh, "lfm"), fresh.uns["lfm"]
    record = {name: uns[name] for name in uns if name in [*record_for_new_cells(uns), "held_out"]}
    expected = stored(fresh)
    for before in KINDS:
        adata = fit_of_kind(before)
        write_fit(adata, "lfm", fit.posterior, n_factors=len(fit.active), fitted=fit.fitted, record=record)
        found = stored(adata)
        assert found.keys() == expected.keys(), before
        assert all(same(found[name], expected[name]) for name in ("obsm X_lfm", "varm lfm", "prior_cell_cov")), before


def test_a_fit_again_leaves_nothing_of_the_one_before(fit_of_kind):
    adata = fit_of_kind("poisson, covariates")
    for likelihood, options, more in (KINDS["negative binomial"], KINDS["poisson, held out"], KINDS["bernoulli"]):
        adata.X = adata.X.minimum(1) if likelihood == "bernoulli" else adata.X
        lfm.tl.fit(adata, R, likelihood=likelihood, progress=False, **options)
        assert set(stored(adata)) == {*ALL_FITS, *more}
    adata.X = adata.to_df().to_numpy() + np.random.default_rng(0).normal(size=adata.shape)
    for kind in ("noise of each cell", "normal, held out", "normal, covariates", "noise of each gene"):
        lfm.tl.fit(adata, R, progress=False, **KINDS[kind][1])
        assert set(stored(adata)) == {*ALL_FITS, *KINDS[kind][2]}


def test_what_the_schema_lacks_cannot_be_written(fit_of_kind, monkeypatch):
    adata = fit_of_kind("normal")
    fit, before = read_fit(adata, "lfm"), stored(adata)
    how = {"n_factors": R, "fitted": fit.fitted}
    for name in ("note", "cell_factors", "mu"):  # the last two follow from the posterior
        with pytest.raises(ValueError, match=rf"no entry '{name}'"):
            write_fit(adata, "lfm", fit.posterior, **how, record={"params": fit.params, name: 1.0})
    assert stored(adata).keys() == before.keys()
    without_fit(adata)
    monkeypatch.setattr(write, "FIELDS", [field for field in FIELDS if field.name not in {"gene_sigma", "df", "mu"}])
    write_fit(adata, "lfm", fit.posterior, **how, record={"params": fit.params})
    assert "lfm_sigma" not in adata.var
    assert "mu" not in adata.uns["lfm"]


def test_covariances_of_cells_that_would_be_too_large_are_not_due(fit_of_kind, monkeypatch):
    adata = fit_of_kind("poisson")
    fit, uns = read_fit(adata, "lfm"), adata.uns["lfm"]
    monkeypatch.setattr(lfm.settings, "_max_cov_bytes", N * 6 * 4 - 1)
    write_fit(adata, "lfm", fit.posterior, n_factors=R, fitted=fit.fitted, record=record_for_new_cells(uns))
    assert set(stored(adata)) == {*ALL_FITS, *KINDS["poisson"][2]} - {"obsm lfm_cov"}


def test_names_are_those_of_the_keys_and_none_twice():
    assert len(FIELD) == len(FIELDS)
    assert {field.name for field in FIELDS if field.frame != "uns"} == {field.name for field in fields(FitKeys)} - {
        "uns"
    }
    places = fit_places("lfm")
    assert len(set(places)) == len(places) == 1 + sum(field.frame != "uns" for field in FIELDS)
    assert {name for _, name in places} == {getattr(fit_keys("lfm"), field.name) for field in fields(FitKeys)}


def test_every_field_has_a_known_frame_owner_condition_and_axes():
    layout = Layout(3, np.ones(2, dtype=bool), np.ones(1, dtype=bool), 1)
    for field in FIELDS:
        assert field.frame in {"obs", "var", "obsm", "varm", "uns"}
        assert field.of in {"cells", "genes", "model", "record"}
        assert field.when in FitKind.__dataclass_fields__
        assert all(layout.kept(axis).all() for axis in field.shape)
        assert {"obs": "n", "obsm": "n", "var": "m", "varm": "m"}.get(field.frame) in {None, *field.shape[:1]}
        if field.frame == "uns":
            assert not {"n", "m"} & set(field.shape)  # it would not be sliced
        # the documented precision
        assert field.dtype == ("float64" if field.shape[:1] == ("k",) else "float32") or not field.shape


@pytest.mark.parametrize(
    "shape", [("n", "r"), ("m", "p"), ("m",), ("k", "k"), ("m", "gene_packed"), ("n", "cell_packed")]
)
def test_arrays_come_back_from_their_layout(shape):
    layout = Layout(4, np.array([True, False, True]), np.array([True, False, True, False]), 2)
    sizes = {"n": 4, "m": 2, "r": 2, "p": 2, "k": 5, "gene_packed": 15, "cell_packed": 6}
    values = 1 + np.arange(np.prod([sizes[axis] for axis in shape]), dtype=float)
    values = values.reshape([sizes[axis] for axis in shape])
    full = layout.spread(values, shape, "float32")
    assert full.dtype == np.float32
    np.testing.assert_array_equal(layout.gather(full, shape), values)
    missing = np.isnan(full).reshape(len(full), -1)
    np.testing.assert_array_equal(missing.all(axis=1), ~layout.fitted if shape[0] == "m" else False)
    assert np.nansum(full) == values.sum()
    for on in (layout, Layout(4, np.ones(2, dtype=bool), np.ones(2, dtype=bool), 2)):
        values = np.ones([on.kept(axis).sum() for axis in shape], dtype=np.float32)
        assert not np.shares_memory(on.spread(values, shape, "float32"), values)


def test_a_packed_layout_is_that_of_the_dense_one():
    """Lower triangles of matrices in which coordinates that are off are zero."""
    layout = Layout(1, np.ones(2, dtype=bool), np.array([False, True, False]), 1)
    dense = np.array([[[1.0, 2, 3], [2, 4, 5], [3, 5, 6]]] * 2)
    lower, full_lower = np.tril_indices(3), np.tril_indices(5)
    packed = layout.spread(dense[:, lower[0], lower[1]], ("m", "gene_packed"), "float32")
    for row, matrix in zip(packed, dense, strict=True):
        whole = layout.spread(matrix, ("k", "k"), "float64")
        np.testing.assert_array_equal(row, whole[full_lower])


def test_the_record_for_new_cells_is_a_list_of_what_is_allowed(fit_of_kind):
    reference, new = fit_of_kind("normal, held out"), fit_of_kind("normal")
    uns = reference.uns["lfm"]
    uns["note"] = "of the user"
    without_fit(new)
    lfm.tl.project(new, reference)
    found = new.uns["lfm"]
    assert not {"note", "held_out"} & set(found)
    for name in ("variance_ratio", "elbo", "converged", "seconds", "version", "values"):
        assert same(found[name], uns[name])
    assert found["params"] == {name: value for name, value in uns["params"].items() if name != "held_out"}
    assert found["params"] is not uns["params"]
    assert "held_out" in uns["params"]


@pytest.mark.parametrize("kind", ["normal", "normal, held out", "negative binomial"])
def test_a_fit_is_read_from_arrays_that_are_read_only(fit_of_kind, kind):
    adata = fit_of_kind(kind)
    expected = read_fit(adata, "lfm").posterior
    for values in (*adata.obsm.values(), *adata.varm.values(), *adata.uns["lfm"].values()):
        if isinstance(values, np.ndarray):
            values.setflags(write=False)
    assert read_fit(adata, "lfm").posterior.cell_mean.equal(expected.cell_mean)


@pytest.mark.half_slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "student t"])
def test_a_projection_stores_what_its_reference_does_but_what_was_held_out(fit_of_kind, kind):
    reference, new = fit_of_kind(kind), fit_of_kind(kind)
    without_fit(new)
    values = new.to_df()
    lfm.tl.project(new, reference)
    assert set(stored(new)) == {*ALL_FITS, *KINDS[kind][2]} - {"held_out"}
    pd.testing.assert_frame_equal(new.to_df(), values)
