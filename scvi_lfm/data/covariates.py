"""Columns of `obs` as a design matrix: learned once from the cells of a fit, applied to any others.

A coding is a data frame, one row for each column of the design matrix, which is stored with the fit: `column` of obs,
`kind`, the `level` that is coded as one and the `reference` level (categorical), and the `mean` and `sd` by which the
values are centred and divided. The sd of a level is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._validate import as_labels, one_column

if TYPE_CHECKING:
    from collections.abc import Hashable

FIELDS = ("column", "kind", "level", "reference", "mean", "sd")
CATEGORICAL, CONTINUOUS = "categorical", "continuous"
# singular values below this share of the largest are none
COLLINEAR = 1e-6
# more whole numbers than that are no numbers of batches
MOST_CODES = 20


def learn_coding(obs: pd.DataFrame, columns: object) -> pd.DataFrame:
    """The coding of some columns of `obs`, fitted to its cells.

    Whole numbers are continuous; strings, booleans and categoricals are levels, of which the first in order of the
    categories is the reference. Categories without a cell are left out.

    Raises
    ------
    TypeError
        `columns` are not names, or a column can be neither.
    KeyError
        There is no such column.
    ValueError
        A column is named twice, has missing values, is constant or follows from others; or there are too many.
    """
    names = _names(columns)
    coding = pd.DataFrame([row for name in names for row in _rows(obs, name)], columns=list(FIELDS))
    if len(coding) + 2 > len(obs):
        msg = (
            f"`covariates` make {len(coding)} columns of the design matrix, too many for {len(obs)} cells. "
            f"Leave out what differs from cell to cell; {coding['column'].mode()[0]!r} has the most levels."
        )
        raise ValueError(msg)
    _check_collinear(code(obs, coding), coding)
    return coding


def code(obs: pd.DataFrame, coding: pd.DataFrame) -> np.ndarray:
    """The design matrix of the cells of `obs`, (n, p) in float64.

    Raises
    ------
    KeyError
        A column is missing.
    TypeError, ValueError
        A column has another kind than it had, a missing value, or a level that the fit did not see.
    """
    design = np.empty((len(obs), len(coding)))
    for name, rows in coding.groupby("column", sort=False):
        values = _column(obs, str(name), str(rows["kind"].iloc[0]))
        if rows["kind"].iloc[0] == CONTINUOUS:
            raw = np.asarray(values, dtype=np.float64)[:, None]
        else:
            levels = rows["level"].to_numpy(dtype=object)
            _check_levels(values, [rows["reference"].iloc[0], *levels], str(name))
            raw = (np.asarray(values, dtype=object)[:, None] == levels).astype(np.float64)
        design[:, rows.index] = (raw - rows["mean"].to_numpy(float)) / rows["sd"].to_numpy(float)
    return design


def numbers_of_levels(obs: pd.DataFrame, coding: pd.DataFrame) -> list[str]:
    """Columns that are coded as continuous and look like numbers given to levels, as batches 0, 1, 2, ...

    They hold few whole numbers, at least half of those from 0 (or -1, for a missing level) to their largest. Ages, days
    of a time course and numbers of genes are spread further. 0 and 1 alone are an indicator, whose slope says all.
    """
    return [
        str(name)
        for name in coding.loc[coding["kind"] == CONTINUOUS, "column"]
        if _number_levels(np.asarray(obs[name], dtype=np.float64))
    ]


def _number_levels(values: np.ndarray) -> bool:
    if not (values == np.rint(values)).all():
        return False
    levels = np.unique(values)
    few = len(levels) <= min(MOST_CODES, len(values) // 2) and not np.array_equal(levels, [0, 1])
    return bool(few and levels[0] >= -1 and levels[-1] < 2 * len(levels))


def _names(columns: object) -> list[str]:
    if isinstance(columns, str):
        return [columns]
    if not isinstance(columns, Sequence) or not all(isinstance(name, str) for name in columns):
        msg = f"`covariates` must be a list of names of columns of obs, such as ['batch'], found {columns!r}."
        raise TypeError(msg)
    names = list(columns)
    if not names:
        msg = "`covariates` names no column. Leave it out, or pass at least one."
        raise ValueError(msg)
    for name in names:
        if names.count(name) > 1:
            msg = f"`covariates` names {name!r} more than once. Name it once."
            raise ValueError(msg)
    return names


def _rows(obs: pd.DataFrame, name: str) -> list[dict[str, Hashable]]:
    """Rows of the coding for one column."""
    kind = _kind(obs, name)
    values = _column(obs, name, kind)
    if kind == CONTINUOUS:
        numbers = np.asarray(values, dtype=np.float64)
        mean, sd = float(numbers.mean()), float(numbers.std())
        if not sd > COLLINEAR**2 * max(abs(mean), float(np.finfo(np.float32).tiny)):
            _raise_constant(name, numbers[0])
        return [{"column": name, "kind": kind, "level": "", "reference": "", "mean": mean, "sd": sd}]
    levels = _levels(obs[name], values)
    if len(levels) < 2:
        _raise_constant(name, levels[0] if levels else None)
    shares = [float((values == level).mean()) for level in levels[1:]]
    return [
        {"column": name, "kind": kind, "level": level, "reference": levels[0], "mean": share, "sd": 1.0}
        for level, share in zip(levels[1:], shares, strict=True)
    ]


def _kind(obs: pd.DataFrame, name: str) -> str:
    column = one_column(obs, name, "obs", "covariates")
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(column):
        return CATEGORICAL
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return CONTINUOUS
    if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
        return CATEGORICAL
    msg = (
        f"`covariates`: obs[{name!r}] has dtype {column.dtype}, which is neither numbers nor labels. "
        f"Make it one: adata.obs[{name!r}] = adata.obs[{name!r}].astype(str), or .astype('int64') for dates as numbers."
    )
    raise TypeError(msg)


def _column(obs: pd.DataFrame, name: str, kind: str) -> pd.Series:
    """One column, checked: labels as strings, numbers as they are."""
    found = _kind(obs, name)
    if found != kind:
        msg = (
            f"`covariates`: obs[{name!r}] is {found} (dtype {obs[name].dtype}), and was {kind} in the fit. "
            "Convert it to what it was."
        )
        raise TypeError(msg)
    column = obs[name]
    missing = column.isna().to_numpy()
    if kind == CONTINUOUS and not missing.any():
        missing = ~np.isfinite(column.to_numpy(dtype=np.float64))
    if missing.any():
        msg = (
            f"`covariates`: obs[{name!r}] is missing or infinite in {int(missing.sum())} cell(s), first "
            f"{obs.index[missing][0]!r}. Fill them, or leave those cells out: "
            f"adata[adata.obs[{name!r}].notnull()].to_memory()."
        )
        raise ValueError(msg)
    return column if kind == CONTINUOUS else as_labels(column, f"`covariates`: obs[{name!r}]")


def _levels(column: pd.Series, labels: pd.Series) -> list[str]:
    """Levels with cells: categories in their order, other labels sorted."""
    present = set(labels)
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [label for label in column.cat.categories.astype(str) if label in present]
    return sorted(present)


def _raise_constant(name: str, value: object) -> None:
    msg = (
        f"`covariates`: obs[{name!r}] is the same in every cell ({value!r}), so it explains nothing. "
        "Leave it out of covariates."
    )
    raise ValueError(msg)


def _check_levels(labels: pd.Series, known: list[str], name: str) -> None:
    new = ~labels.isin(known).to_numpy()
    if new.any():
        msg = (
            f"`covariates`: obs[{name!r}] holds {labels[new].iloc[0]!r} in {int(new.sum())} cell(s), first "
            f"{labels.index[new][0]!r}, a level that the fit did not see; it saw {', '.join(map(repr, known[:10]))}"
            f"{', ...' if len(known) > 10 else ''}. Fit again with those cells, or leave them out."
        )
        raise ValueError(msg)


def _check_collinear(design: np.ndarray, coding: pd.DataFrame) -> None:
    """Raise if a column follows from those before it, naming which."""
    by_name = {name: design[:, rows.index] for name, rows in coding.groupby("column", sort=False)}
    taken: list[str] = []
    for name, block in by_name.items():
        for others in [*([other] for other in taken), taken] if taken else []:
            together = np.column_stack([block, *(by_name[other] for other in others)])
            if _rank(together) < together.shape[1]:
                words = " and ".join(f"obs[{other!r}]" for other in others)
                msg = (
                    f"`covariates`: obs[{name!r}] follows from {words} (collinear), so their effects cannot be told "
                    "apart. Leave one of them out."
                )
                raise ValueError(msg)
        taken.append(str(name))


def _rank(design: np.ndarray) -> int:
    scaled = design / np.linalg.norm(design, axis=0)
    # the Gram matrix is small: its eigenvalues are the squares
    values = np.linalg.eigvalsh(scaled.T @ scaled)
    return int((values > COLLINEAR**2 * max(len(values), 1) * values[-1]).sum())
