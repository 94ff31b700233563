"""Tables of every shape, dtype and format: an error of ours, or a result; and never an AnnData half changed."""

from __future__ import annotations

import contextlib
import copy
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import scvi_lfm as lfm

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = str(Path(lfm.__file__).parent)
OURS = (KeyError, TypeError, ValueError, FloatingPointError)

# tables

# what is usual comes more often, so that enough of the tables are fitted
DTYPES = (*["f4"] * 8, "f8", "f2", ">f4", "g", "i8", "i4", "u1", "?", "c8", "O", "U3")
VALUES = (*["counts", "logs"] * 4, "negative", "huge", "tiny", "constant", "empty", "nan", "infinite", "ones", "wide")
FORMATS = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "masked": lambda values: np.ma.masked_array(values, values != values),
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "repeated": lambda values: repeated(values),
}
COLUMNS: dict[str, Callable[[int, np.random.Generator], Any]] = {
    "category": lambda n, rng: pd.Categorical(rng.choice(["a", "b", "c"], n)),
    "holes": lambda n, rng: pd.Categorical(rng.choice(["a", "b", None], n)),
    "unused": lambda n, rng: pd.Categorical(["a"] * n, ["a", "b"]),
    "bool": lambda n, rng: rng.random(n) < 0.5,
    "nullable": lambda n, rng: pd.array(rng.choice([True, False, None], n), dtype="boolean"),
    "number": lambda n, rng: rng.normal(size=n),
    "positive": lambda n, rng: rng.random(n) + 0.5,
    "nan": lambda n, rng: np.where(rng.random(n) < 0.3, np.nan, 1.0),
    "infinite": lambda n, rng: np.where(rng.random(n) < 0.3, np.inf, 1.0),
    "zero": lambda n, rng: np.zeros(n),
    "whole": lambda n, rng: rng.integers(0, 4, n),
    "mixed": lambda n, rng: np.array([["x", 1, None][k % 3] for k in range(n)], dtype=object),
    "text": lambda n, rng: np.array([f"t{k}" for k in range(n)], dtype=object),
    "date": lambda n, rng: pd.date_range("2020-01-01", periods=n),
    "complex": lambda n, rng: np.ones(n) * 1j,
}
NAMES = ("plain", "repeated", "blank", "unicode", "categorical")


def repeated(values: np.ndarray) -> sp.csr_matrix:
    """Every entry stored twice, out of order."""
    n, m = values.shape
    row, column = np.divmod(np.arange(n * m)[::-1], max(m, 1))
    coo = (np.tile(values[row, column], 2), (np.tile(row, 2), np.tile(column, 2)))
    order = np.argsort(coo[1][0], kind="stable")
    starts = np.searchsorted(coo[1][0][order], np.arange(n + 1))
    return sp.csr_matrix((coo[0][order], coo[1][1][order], starts), shape=(n, m))


@st.composite
def matrices(draw: st.DrawFn, n: int, m: int) -> Any:
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    kind, dtype = draw(st.sampled_from(VALUES)), draw(st.sampled_from(DTYPES))
    values: np.ndarray = rng.poisson(2.0, (n, m)).astype(float)
    values = {
        "logs": np.log1p(values),
        "negative": values - 2.5,
        "huge": values * 1e30,
        "tiny": values * 1e-30,
        "constant": np.full((n, m), 3.0),
        "empty": np.zeros((n, m)),
        "nan": np.where(rng.random((n, m)) < 0.1, np.nan, values),
        "infinite": np.where(rng.random((n, m)) < 0.1, np.inf, values),
        "ones": (values > 2).astype(float),
        "wide": np.exp(rng.normal(scale=8, size=(n, m))),
    }.get(kind, values)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return FORMATS[draw(st.sampled_from(list(FORMATS)))](values.astype(dtype))
        except ValueError:  # scipy has no sparse matrices of these
            return values.astype(dtype)


@st.composite
def tables(draw: st.DrawFn) -> ad.AnnData:
    n, m = draw(st.sampled_from([*[12] * 8, 30, 3, 2, 1, 0])), draw(st.sampled_from([*[8] * 8, 20, 3, 2, 1, 0]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    frames = []
    for axis, size in (("cell", n), ("gene", m)):
        frame = pd.DataFrame({name: column(size, rng) for name, column in COLUMNS.items()}, index=range(size))
        kind = draw(st.sampled_from((*["plain"] * 10, *NAMES)))
        frame.index = names_of(axis, size, kind)
        frames.append(frame)
    layers = {}
    if draw(st.booleans()):
        layers["other"] = draw(matrices(n, m))
    if draw(st.booleans()):
        mask = rng.random((n, m)) < draw(st.sampled_from([0.0, 0.1, 1.0]))
        layers["mask"] = draw(st.sampled_from([sp.csr_matrix, sp.csc_array, np.asarray]))(mask)
    values = None if draw(st.integers(0, 39)) == 17 else draw(matrices(n, m))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ad.AnnData(values, obs=frames[0], var=frames[1], layers=layers)
    except (TypeError, ValueError):  # no AnnData at all
        assume(False)
        raise


def names_of(axis: str, size: int, kind: str) -> pd.Index:
    names = [f"{axis}_{k}" for k in range(size)]
    if kind == "repeated" and size > 1:
        names[1] = names[0]
    if kind == "blank" and size:
        names[0] = ""
    if kind == "unicode":
        names = [f"\N{GREEK SMALL LETTER ALPHA}/{name}\n" for name in names]
    return pd.CategoricalIndex(names) if kind == "categorical" else pd.Index(names, dtype=object)


# what is to hold


def outcome(call: Callable[[], object], *adatas: ad.AnnData) -> object:
    """The result of a call, or None after an error of ours, which left every AnnData as it was."""
    before = [copy_of(adata) for adata in adatas]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)
            return call()
    except OURS as error:
        check_words(error)
        for adata, old in zip(adatas, before, strict=True):
            assert contents(adata) == old
        return None


def check_words(error: Exception) -> None:
    """An error is raised in the package, in a sentence of its own."""
    place, words = traceback.extract_tb(error.__traceback__)[-1], str(error.args[0])
    assert place.filename.startswith(PACKAGE), f"{type(error).__name__}: {error} from {place}"
    assert len(words) > 20, words
    assert words.rstrip()[-1] in ".?)", f"{words} from {place}"


def copy_of(adata: ad.AnnData) -> dict[str, Any]:
    return copy.deepcopy(contents(adata))


def contents(part: object) -> Any:
    """All that an AnnData holds, as something that can be compared."""
    if isinstance(part, ad.AnnData):
        fields = ("X", "obs", "var", "layers", "obsm", "varm", "uns")
        return {name: contents(getattr(part, name)) for name in fields}
    if isinstance(part, pd.DataFrame):
        return {name: contents(part[name].array) for name in part} | {"": contents(part.index)}
    if sp.issparse(part):
        return type(part), part.shape, *(contents(getattr(part, name)) for name in ("data", "indices", "indptr"))
    if hasattr(part, "items"):
        return {name: contents(value) for name, value in part.items()}
    if isinstance(part, np.ndarray) and part.dtype.kind not in "OV":
        return type(part), part.dtype, part.shape, part.tobytes()
    if isinstance(part, np.ndarray | pd.Index) or hasattr(part, "dtype"):
        return type(part), str(getattr(part, "dtype", "")), repr(list(np.atleast_1d(np.asarray(part, dtype=object))))
    return repr(part)


def all_finite(adata: ad.AnnData, key: str, fitted: np.ndarray) -> None:
    for name in (f"X_{key}", f"X_{key}_sd"):
        assert np.isfinite(adata.obsm[name]).all(), name
    for name in (key, f"{key}_sd"):
        assert np.isfinite(adata.varm[name][fitted]).all(), name
    assert np.isfinite(adata.obs[[f"{key}_a", f"{key}_a_sd"]].to_numpy()).all()


# fit

SOME_COLUMN = st.sampled_from([*[None] * 24, *COLUMNS, "nowhere"])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "layer": st.sampled_from([*[None] * 8, "other", "mask", "nowhere", 3]),
        "likelihood": st.sampled_from(["auto", "auto", "normal", "negative_binomial", "poisson", "bernoulli"]),
        "noise": st.sampled_from(["shared", "shared", "gene", "cell_gene"]),
        "observed": st.sampled_from(["all", "all", "stored"]),
        "held_out": st.sampled_from([None, None, None, "mask", "other", "nowhere"]),
        "covariates": st.sampled_from([None, None, None])
        | st.lists(st.sampled_from([*COLUMNS, "nowhere"]), max_size=2),
        "size_factors": SOME_COLUMN,
        "mask_var": SOME_COLUMN,
        "family": st.sampled_from(["row_block", "mean_field"]),
        "batch_size": st.sampled_from([2, 4, 5, 100]),
    },
)


FACTORS = st.sampled_from([*[1, 2, 0, 3] * 4, "auto", "auto", -1, 100, 1.5, None])


def check_fit(adata: ad.AnnData, n_factors: object, options: dict[str, Any]) -> None:
    mask = options.get("mask_var")
    call = {"max_epochs": 3, "tol": 1.0, "progress": False} | options
    if outcome(lambda: lfm.tl.fit(adata, n_factors, **call, copy=True), adata) is None:
        return
    lfm_fit = outcome(lambda: lfm.tl.fit(adata, n_factors, **call) or True, adata)
    assert lfm_fit
    fitted = np.ones(adata.n_vars, dtype=bool) if mask is None else np.asarray(adata.var[mask], dtype=bool)
    all_finite(adata, "lfm", fitted)


@pytest.mark.slow
@given(tables(), FACTORS, OPTIONS)
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
def test_fit(adata: ad.AnnData, n_factors: object, options: dict[str, Any]) -> None:
    check_fit(adata, n_factors, options)


@given(tables(), st.sampled_from([1, 0, "auto"]), OPTIONS)
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
def test_fit_of_a_few(adata: ad.AnnData, n_factors: object, options: dict[str, Any]) -> None:
    check_fit(adata, n_factors, options)


# tools, on a fit of which something was changed since

N, M = 24, 15
KINDS: dict[str, dict[str, Any]] = {
    "normal": {"likelihood": "normal"},
    "cell_gene": {"likelihood": "normal", "noise": "cell_gene"},
    "covariate": {"likelihood": "normal", "covariates": "category"},
    "ratings": {"likelihood": "normal", "observed": "stored"},
    "held out": {"likelihood": "normal", "held_out": "mask"},
    "counts": {"likelihood": "negative_binomial"},
    "counts and covariate": {"likelihood": "poisson", "covariates": "category"},
}
ARRAYS = ("nan", "infinite", "negative", "huge", "text", "objects", "wider", "zeros", "nothing")
TOOLS: dict[str, Callable[[ad.AnnData], object]] = {
    "anomalies": lambda adata: lfm.tl.anomalies(adata),
    "check": lambda adata: lfm.tl.check(adata, refit=False),
    "hold_out": lambda adata: lfm.tl.hold_out(adata, 0.2, key_added="new"),
    "predict": lambda adata: lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names)),
    "layer": lambda adata: lfm.tl.predict(adata, layer_added="new"),
    "project": lambda adata: lfm.tl.project(adata, adata, key_added="new"),
    "rank_cells": lambda adata: lfm.tl.rank_cells(adata, list(adata.var_names[:2])),
    "rank_genes": lambda adata: lfm.tl.rank_genes(adata, "category"),
    "mask": lambda adata: lfm.tl.rank_genes(adata, mask_obs="bool"),
    "recommend": lambda adata: lfm.tl.recommend(adata, n_top=2),
    "sample": lambda adata: lfm.tl.sample_posterior(adata, 2),
    "similar_genes": lambda adata: lfm.tl.similar_genes(adata, adata.var_names[0] if adata.n_vars else "gene_0"),
}


def fitted(kind: str) -> ad.AnnData:
    if kind not in _FITTED:
        rng = np.random.default_rng(0)
        of_cells, of_genes = np.arange(N) % 3 - 1.0, np.arange(M) % 4 - 1.5
        values = rng.poisson(np.exp(1 + np.outer(of_cells, of_genes) / 2)).astype("f4")
        values[:, 0] += 1
        values = values if kind.startswith("counts") else np.log1p(values)
        adata = ad.AnnData(sp.csr_matrix(values))
        adata.obs_names, adata.var_names = names_of("cell", N, "plain"), names_of("gene", M, "plain")
        adata.obs["category"], adata.obs["bool"] = pd.Categorical(["a", "b", "c"] * (N // 3)), np.arange(N) < 10
        adata.layers["mask"] = sp.csr_matrix(rng.random((N, M)) < 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lfm.tl.fit(adata, 2, **KINDS[kind], max_epochs=3, tol=1.0, progress=False)
        _FITTED[kind] = adata
    return _FITTED[kind].copy()


_FITTED: dict[str, ad.AnnData] = {}


def spoiled(values: np.ndarray, how: str) -> Any:
    """An array of another kind, or with something in it that cannot be."""
    changed = np.array(values, dtype=float)
    if how in {"nan", "infinite", "negative", "huge"} and changed.size:
        wrong = {"nan": np.nan, "infinite": np.inf, "negative": -1 - abs(changed.flat[0]), "huge": 1e300}
        changed.flat[0] = wrong[how]
        return changed
    if how == "text":
        return changed.astype(str)
    if how == "objects":
        return changed.astype(object)
    if how == "wider" and changed.ndim:
        return np.concatenate([changed, changed[..., :1]], axis=-1)
    return np.zeros_like(changed) if how == "zeros" else changed


@st.composite
def changed_fits(draw: st.DrawFn) -> ad.AnnData:
    adata = fitted(draw(st.sampled_from(list(KINDS))))
    what = draw(st.sampled_from(["X", "slice", "obs", "names", *["stored"] * 8]))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if what == "X":
            try:
                adata.X = draw(matrices(N, M))
            except (TypeError, ValueError):
                assume(False)
        elif what == "slice":
            cells, genes = draw(st.sampled_from([N, 5, 1, 0])), draw(st.sampled_from([M, 3, 1, 0]))
            adata = adata[:cells, :genes].copy()
        elif what == "obs":
            column = draw(st.sampled_from(list(COLUMNS)))
            adata.obs[draw(st.sampled_from(["category", "bool"]))] = COLUMNS[column](N, np.random.default_rng(0))
        elif what == "names":
            axis, kind = draw(st.sampled_from(["obs", "var"])), draw(st.sampled_from(NAMES))
            names = names_of("cell", N, kind) if axis == "obs" else names_of("gene", M, kind)
            setattr(adata, f"{axis}_names", names)
        else:
            change_stored(draw, adata)
    return adata


def change_stored(draw: st.DrawFn, adata: ad.AnnData) -> None:
    """Spoil, or take away, one field of the fit."""
    places = [(name, key) for name in ("obs", "var", "obsm", "varm") for key in getattr(adata, name) if "lfm" in key]
    places += [("uns", key) for key in adata.uns["lfm"]] + [("params", key) for key in adata.uns["lfm"]["params"]]
    container, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(ARRAYS))
    fields = {"uns": adata.uns["lfm"], "params": adata.uns["lfm"]["params"]}.get(container)
    fields = getattr(adata, container) if fields is None else fields
    value = fields[key]
    if how == "nothing":
        del fields[key]
    elif isinstance(value, str | bool):
        fields[key] = draw(st.sampled_from(["", "other", 3, np.nan, True]))
    elif isinstance(value, dict | pd.DataFrame) or (isinstance(value, np.ndarray) and value.dtype.kind not in "fi"):
        fields[key] = draw(st.sampled_from(["", 3, {}, np.ones(2)]))
    else:
        with contextlib.suppress(ValueError):  # no shape that an AnnData takes
            fields[key] = spoiled(np.asarray(value), how)


# there are no p-values, and no fold changes of values that are no logs; genes may be left out of a fit
MAY_MISS = ("pvals", "pvals_adj", "logfoldchanges", "new_b", "new_b_sd", "new_sigma", "new_theta", "lfm_anomaly")


def numbers_of(part: object) -> list[np.ndarray]:
    """Every array of numbers that a tool wrote or gave back."""
    if isinstance(part, dict):
        return [values for key, value in part.items() if key not in MAY_MISS for values in numbers_of(value)]
    if isinstance(part, pd.DataFrame):
        return [part[name].to_numpy() for name in part if part[name].dtype.kind == "f"]
    if isinstance(part, np.ndarray) and part.dtype.names:
        return [part[name] for name in part.dtype.names if part[name].dtype.kind == "f"]
    return [part] if isinstance(part, np.ndarray) and part.dtype.kind == "f" else []


def check_tool(adata: ad.AnnData, name: str) -> None:
    result = outcome(lambda: (TOOLS[name](adata),), adata)
    if result is None:
        return
    written = {field: contents for container in (adata.obs, adata.var) for field, contents in container.items()}
    # `project` takes the record of the reference as it is
    written |= {key: value for key, value in adata.uns.items() if key not in {"lfm", "new"}}
    new = {key: value for key, value in written.items() if key.startswith(("rank_", "lfm_anomaly", "new"))}
    for values in numbers_of(result[0]) + numbers_of({key: _plain(value) for key, value in new.items()}):
        assert np.isfinite(values).all(), f"{name}: {values}"


def _plain(value: object) -> object:
    return value.to_numpy() if isinstance(value, pd.Series) else value


TOOL_CASE = (changed_fits(), st.sampled_from(list(TOOLS)))


@pytest.mark.slow
@given(*TOOL_CASE)
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
def test_tools(adata: ad.AnnData, name: str) -> None:
    check_tool(adata, name)
