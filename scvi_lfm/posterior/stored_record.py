"""Whether what is in uns can be the record of a fit: a damaged file gives back anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._keys import COVARIATES, LEVEL, VALUES
from ..data._covariates import FIELDS
from ..data._kind import RECORDED
from ..model.likelihoods import CONTINUOUS, COUNTS
from .fields import ON_JOINING, entry
from .stored_covariates import n_known

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHOICES: dict[str, Sequence[str]] = {
    "noise": ("shared", "gene", "cell_gene"),
    "observed": ("all", "stored"),
    "family": ("row_block", "mean_field"),
    "engine": ("natural_gradient", "pyro"),
}
_NUMBERS = ("n_factors", "batch_size", "max_epochs", "tol")
_VECTORS = ("prior_cell_mean", "prior_gene_mean", "gene_eig", "cell_eig")
_COVARIANCES = ("prior_cell_cov", "prior_gene_cov", "cell_cov")
_BASES = ("gene_basis", "cell_basis")
# of eigenvalues that are zero but for rounding
_ROUNDING = 1e-9
# their squares are finite
_LARGEST = 1e38


def check_record(uns: object, key: str) -> Mapping[str, Any]:
    """The parameters of a fit, once all that is in its record has the shape, and is of the kind, that it must be.

    Raises
    ------
    KeyError
        Something is missing.
    ValueError
        Something cannot be.
    """
    if not isinstance(uns, Mapping):
        raise _wrong(key, f"it is a {type(uns).__name__}")
    params = entry(uns, "params", key)
    if not isinstance(params, Mapping):
        raise _wrong(key, f"params is a {type(params).__name__}")
    for name, choices in {**_CHOICES, "likelihood": (*CONTINUOUS, *COUNTS)}.items():
        if name in params and str(params[name]) not in choices:
            raise _wrong(key, f"params[{name!r}] is {params[name]!r}")
    if params.get("likelihood") not in COUNTS:
        entry(params, "noise", key)
    for name in _NUMBERS:
        if name in params and not _number(params[name]) >= 0:
            raise _wrong(key, f"params[{name!r}] is {params[name]!r}")
    for name in ("mu", "sigma", "df", LEVEL):
        if name in uns and (np.isnan(_number(uns[name])) or (name in {"sigma", "df"} and _number(uns[name]) < 0)):
            raise _wrong(key, f"{name} is {uns[name]!r}")
    _check_values(uns, key)
    _check_coding(uns, key)
    _check_arrays(uns, key)
    return params


def _check_values(uns: Mapping[str, Any], key: str) -> None:
    """What is stored of the values that the fit read; older fits stored nothing of them."""
    values = uns.get(VALUES, {})
    if not isinstance(values, Mapping):
        raise _wrong(key, f"{VALUES} is a {type(values).__name__}")
    lost = [name for name in RECORDED if name not in values]
    if values and lost:
        msg = f"uns[{key!r}] has lost {', '.join(lost)} of {VALUES!r}, which lfm.tl.fit wrote. {ON_JOINING}"
        raise KeyError(msg)
    for name, value in values.items():
        if np.isnan(_number(value)):
            raise _wrong(key, f"{VALUES}[{name!r}] is {value!r}")


def _check_coding(uns: Mapping[str, Any], key: str) -> None:
    """How covariates are coded, a row for each."""
    if COVARIATES not in uns:
        return
    coding = uns[COVARIATES]
    if not isinstance(coding, pd.DataFrame) or set(FIELDS) - set(coding):
        raise _wrong(key, f"{COVARIATES} has no column for each of {', '.join(FIELDS)}")
    numbers = coding[["mean", "sd"]]
    if any(dtype.kind not in "fi" for dtype in numbers.dtypes) or not np.isfinite(numbers).all(axis=None):
        raise _wrong(key, f"{COVARIATES} holds a mean or sd that is no number")


def _check_arrays(uns: Mapping[str, Any], key: str) -> None:
    k, known = np.asarray(entry(uns, "prior_cell_mean", key)).size, n_known(uns)
    if k < 1 + known:
        raise _wrong(key, f"prior_cell_mean has {k} value(s) with {known} covariate(s)")
    for names, shape in ((_VECTORS, (k,)), ((*_COVARIANCES, *_BASES), (k, k))):
        for name in names:
            if name not in uns:
                continue
            values = np.asarray(uns[name])
            if values.dtype.kind not in "fiu" or values.shape != shape:
                raise _wrong(key, f"{name} has dtype {values.dtype} and shape {values.shape}, expected {shape}")
            if not (np.abs(values) <= _LARGEST).all():
                raise _wrong(key, f"{name} holds values that are missing, infinite or out of all proportion")
            if name in _COVARIANCES and not _is_covariance(values):
                raise _wrong(key, f"{name} is no covariance")


def _is_covariance(values: np.ndarray) -> bool:
    size = np.abs(values).max(initial=0.0)
    symmetric = np.abs(values - values.T).max(initial=0.0) <= _ROUNDING * size
    return bool(symmetric and np.linalg.eigvalsh(values).min(initial=0.0) >= -_ROUNDING * size)


def _number(value: object) -> float:
    """A number; NaN for whatever else."""
    array = np.asarray(value)
    fine = array.dtype.kind in "fiu" and array.ndim == 0 and bool(np.abs(array) <= _LARGEST)
    return float(array) if fine else float("nan")


def _wrong(key: str, what: str) -> ValueError:
    msg = (
        f"uns[{key!r}] is not what lfm.tl.fit stored there: {what}. It was changed since, or its file was damaged: "
        "read another copy, or run lfm.tl.fit(adata) again."
    )
    return ValueError(msg)
