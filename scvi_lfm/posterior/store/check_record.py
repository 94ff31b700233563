"""Whether what is in uns can be the record of a fit: a damaged file gives back anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..._fit_arguments import ARGUMENTS
from ..._keys import (
    CELL_BASIS,
    COVARIATES,
    DF,
    GENE_BASIS,
    LEVEL,
    LEVELS,
    MU,
    PARAMS,
    PRIOR_CELL_MEAN,
    SIGMA,
    VALUES,
)
from ...data.covariates import FIELDS as CODING
from ...data.kind import AS_READ, RECORDED
from ...model.likelihoods import CONTINUOUS, LIKELIHOODS
from .covariates import n_known
from .lookup import ON_JOINING, entry
from .schema import FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHOICES: dict[str, Sequence[str]] = {name: known.choices for name, known in ARGUMENTS.items() if known.choices}
_NUMBERS = [name for name, known in ARGUMENTS.items() if known.positive or known.minimum is not None]
_OF_COORDINATES = [field for field in FIELDS if field.frame == "uns" and set(field.shape) == {"k"}]
_NO_COVARIANCES = (GENE_BASIS, CELL_BASIS)
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
    params = entry(uns, PARAMS, key)
    if not isinstance(params, Mapping):
        raise _wrong(key, f"{PARAMS} is a {type(params).__name__}")
    for name, choices in {**_CHOICES, "likelihood": tuple(LIKELIHOODS)}.items():
        if name in params and str(params[name]) not in choices:
            raise _wrong(key, f"{PARAMS}[{name!r}] is {params[name]!r}")
    if params.get("likelihood") in (None, *CONTINUOUS):
        entry(params, "noise", key)
    for name in _NUMBERS:
        if name in params and not _number(params[name]) >= 0:
            raise _wrong(key, f"{PARAMS}[{name!r}] is {params[name]!r}")
    for name in (MU, SIGMA, DF, LEVEL):
        if name in uns and (np.isnan(_number(uns[name])) or (name in {SIGMA, DF} and _number(uns[name]) < 0)):
            raise _wrong(key, f"{name} is {uns[name]!r}")
    _check_levels(uns, key)
    _check_values(uns, key)
    _check_coding(uns, key)
    _check_arrays(uns, key)
    return params


def _check_levels(uns: Mapping[str, Any], key: str) -> None:
    """Check the lowest level, and the thresholds, which increase."""
    if LEVELS not in uns:
        return
    levels = np.asarray(uns[LEVELS])
    numbers = levels.dtype.kind in "fi" and levels.ndim == 1 and len(levels) > 1
    if not numbers or not np.isfinite(levels).all() or not (np.diff(levels[1:]) > 0).all():
        raise _wrong(key, f"{LEVELS} is {uns[LEVELS]!r}")


def _check_values(uns: Mapping[str, Any], key: str) -> None:
    """Check what is stored of the values that the fit read; older fits stored nothing of them."""
    values = uns.get(VALUES, {})
    if not isinstance(values, Mapping):
        raise _wrong(key, f"{VALUES} is a {type(values).__name__}")
    prefixes = ("", AS_READ) if "normalize" in uns[PARAMS] else ("",)
    lost = [prefix + name for prefix in prefixes for name in RECORDED if prefix + name not in values]
    if values and lost:
        msg = f"uns[{key!r}] has lost {', '.join(lost)} of {VALUES!r}, which lfm.tl.fit wrote. {ON_JOINING}"
        raise KeyError(msg)
    for name, value in values.items():
        if np.isnan(_number(value)):
            raise _wrong(key, f"{VALUES}[{name!r}] is {value!r}")


def _check_coding(uns: Mapping[str, Any], key: str) -> None:
    """Check how covariates are coded, a row for each."""
    if COVARIATES not in uns:
        return
    coding = uns[COVARIATES]
    if not isinstance(coding, pd.DataFrame) or set(CODING) - set(coding):
        raise _wrong(key, f"{COVARIATES} has no column for each of {', '.join(CODING)}")
    numbers = coding[["mean", "sd"]]
    if any(dtype.kind not in "fi" for dtype in numbers.dtypes) or not np.isfinite(numbers).all(axis=None):
        raise _wrong(key, f"{COVARIATES} holds a mean or sd that is no number")


def _check_arrays(uns: Mapping[str, Any], key: str) -> None:
    k, known = np.asarray(entry(uns, PRIOR_CELL_MEAN, key)).size, n_known(uns)
    if k < 1 + known:
        raise _wrong(key, f"{PRIOR_CELL_MEAN} has {k} value(s) with {known} covariate(s)")
    for field in _OF_COORDINATES:
        if field.name not in uns:
            continue
        values, shape = np.asarray(uns[field.name]), (k,) * len(field.shape)
        if values.dtype.kind not in "fiu" or values.shape != shape:
            raise _wrong(key, f"{field.name} has dtype {values.dtype} and shape {values.shape}, expected {shape}")
        if not (np.abs(values) <= _LARGEST).all():
            raise _wrong(key, f"{field.name} holds values that are missing, infinite or out of all proportion")
        if len(shape) == 2 and field.name not in _NO_COVARIANCES and not _is_covariance(values):
            raise _wrong(key, f"{field.name} is no covariance")


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
