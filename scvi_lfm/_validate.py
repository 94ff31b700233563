"""Small validators shared by the public calls; each raises with what was found and what to pass instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._spelling import near_matches, nearest_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def check_anndata(adata: object, name: str = "adata") -> None:
    """Raise unless `adata` is an AnnData."""
    import anndata

    if not isinstance(adata, anndata.AnnData):
        msg = f"`{name}` must be an AnnData, found {type(adata).__name__}.{_made_of(adata)}"
        raise TypeError(msg)


def _made_of(values: object) -> str:
    """How an AnnData is had from something else, if it is."""
    if isinstance(values, str | PathLike):
        return " Read it first: anndata.read_h5ad(path), or anndata.read_zarr(path)."
    if isinstance(getattr(values, "mod", None), Mapping):
        return " Pass one of its modalities, such as mdata.mod['rna']."
    if len(getattr(values, "shape", ())) == len(("cells", "genes")):
        return " Make it one first: anndata.AnnData(values), cells by genes."
    return ""


def check_writable(adata: AnnData, *, copy: bool = False) -> None:
    """Raise where results cannot be written into an AnnData, or into a copy of it."""
    if not adata.isbacked:
        return
    if adata.is_view:
        msg = (
            "`adata` is a view of a backed AnnData, into which nothing can be written. Call adata = adata.to_memory() "
            "first, or adata = adata.copy(filename) with the name of a new file."
        )
        raise ValueError(msg)
    if copy:
        msg = (
            "`copy`: a backed AnnData is copied into a new file only. Leave `copy` out, so that results are written "
            "into `adata` (its file stays as it is), or pass adata.to_memory()."
        )
        raise ValueError(msg)


def memory_first(adata: AnnData) -> str:
    """What goes before a call that a backed AnnData does not take: one more call, in words."""
    return "adata = adata.to_memory(), then " if adata.isbacked else ""


def itself_or_copy(adata: AnnData, *, copy: bool) -> AnnData:
    """The AnnData, or a copy; raise where it holds what cannot be copied."""
    if not copy:
        return adata
    try:
        return adata.copy()
    except (TypeError, ValueError, NotImplementedError) as error:
        msg = f"`adata` cannot be copied ({error}). Pass copy=False, or convert what it holds, such as half precision."
        raise ValueError(msg) from error


def check_not_empty(adata: AnnData) -> None:
    """Raise unless there is at least one cell and one gene."""
    if 0 in adata.shape:
        msg = f"The AnnData has {adata.n_obs} cell(s) and {adata.n_vars} gene(s); at least one of each is needed."
        raise ValueError(msg)


def check_unique(index: pd.Index, axis: str) -> None:
    """Raise unless the names of an axis are unique: results are stored and looked up by name."""
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()
        msg = (
            f"{axis}_names are not unique: {len(repeated)} name(s) repeat, first {repeated[0]!r}. "
            f"Call adata.{axis}_names_make_unique() first."
        )
        raise ValueError(msg)


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """Raise unless `value` is one of `options`."""
    if not (isinstance(value, str) and value in options):
        near = nearest_choice(str(value), options)
        meant = "" if near is None else f" Did you mean {near!r}?"
        msg = f"`{name}` must be one of {', '.join(map(repr, options))}, found {value!r}.{meant}"
        raise ValueError(msg)


def check_count(name: str, value: object, *, minimum: int = 1, words: Sequence[str] = ()) -> int:
    """`value` as an int, 10.0 as 10; raise unless it is a whole number of at least `minimum`.

    An error says which `words` may stand in its place.
    """
    number = float(value) if isinstance(value, float | np.floating) else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        also = "".join(f" or {word!r}" for word in words)
        msg = f"`{name}` must be a whole number{also}, found {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    if number < minimum:
        msg = f"`{name}` must be at least {minimum}, found {value}."
        raise ValueError(msg)
    return int(number)


def resolve_rng(rng: object) -> np.random.Generator:
    """Turn `rng` into a generator; a whole number always gives the same stream."""
    if isinstance(rng, np.random.Generator):
        return rng
    try:
        seed = check_count("rng", rng, minimum=0)
    except TypeError:
        msg = f"`rng` must be an int or a numpy.random.Generator, found {rng!r} of type {type(rng).__name__}."
        raise TypeError(msg) from None
    return np.random.default_rng(seed)


def check_fraction(name: str, value: object) -> float:
    """Raise unless `value` is a number strictly between 0 and 1."""
    number = _number(name, value)
    if not 0 < number < 1:
        msg = f"`{name}` must lie between 0 and 1, found {value}."
        raise ValueError(msg)
    return number


def check_positive(name: str, value: object) -> float:
    """Raise unless `value` is a finite number above zero."""
    number = _number(name, value)
    if not (np.isfinite(number) and number > 0):
        msg = f"`{name}` must be {'finite' if number == np.inf else 'above 0'}, found {value}."
        raise ValueError(msg)
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        msg = f"`{name}` must be a number, found {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    return float(value)


def check_key(name: str, value: object) -> str:
    """Raise unless `value` can name fields of an AnnData file."""
    if not isinstance(value, str):
        msg = f"`{name}` must be a string, found {value!r}."
        raise TypeError(msg)
    if not value or "/" in value:
        msg = f"`{name}` must not be empty and must not hold '/', found {value!r}."
        raise ValueError(msg)
    return value


def in_memory(frame: Any) -> pd.DataFrame:
    """Obs or var as a data frame: what anndata reads lazily is read."""
    return frame if isinstance(frame, pd.DataFrame) else frame.to_memory()


def one_column(frame: pd.DataFrame, name: object, axis: str, argument: str | None = None) -> pd.Series:
    """The column `name` of obs or var (`axis`), asked for by `argument`; one that is missing or repeated raises."""
    asked = "" if argument is None else f"`{argument}`: "
    if name not in frame.columns:
        msg = f"{asked}{axis} has no column {name!r}. {near_matches(name, frame.columns)}"
        raise KeyError(msg)
    column = frame[name] if isinstance(frame, pd.DataFrame) else in_memory(frame[[name]])[name]
    if isinstance(column, pd.DataFrame):
        msg = f"{asked}{axis} has {column.shape[1]} columns called {name!r}. Rename or drop all but one."
        raise ValueError(msg)
    return column


def resolve_mask(name: str, mask: object, frame: pd.DataFrame) -> np.ndarray:
    """Turn a boolean array, or the name of a boolean column of `frame`, into an array."""
    axis = "obs" if name == "mask_obs" else "var"
    if isinstance(mask, str):
        mask = one_column(frame, mask, axis, name)
    values = np.asarray(mask)
    if values.dtype != bool:
        msg = (
            f"`{name}` must be boolean, without missing values, found dtype {values.dtype}. Of names, pass "
            f"adata.{axis}_names.isin(names); of positions, np.isin(np.arange(adata.n_{axis}{'s' * (axis == 'var')}), "
            "positions)."
        )
        raise TypeError(msg)
    if values.shape != frame.shape[:1]:
        msg = (
            f"`{name}` must have one entry for each of the {frame.shape[0]} rows of {axis}, found shape {values.shape}."
        )
        raise ValueError(msg)
    if isinstance(mask, pd.Series) and not mask.index.equals(in_memory(frame).index):
        msg = f"`{name}` is a Series whose index is not {axis}_names. Reorder it, or pass its .to_numpy() if it fits."
        raise ValueError(msg)
    return values


def locate(name: str, wanted: object, index: pd.Index, axis: str) -> np.ndarray:
    """Positions of the names `wanted` (one or several) in `index`."""
    listed = as_list(name, wanted)
    if not listed:
        msg = f"`{name}` names nothing; pass at least one name of {axis}_names."
        raise ValueError(msg)
    if all(isinstance(label, bool | np.bool_) for label in listed):
        msg = f"`{name}` must hold names, found a boolean mask. Pass adata.{axis}_names[mask]."
        raise TypeError(msg)
    check_unique(index, axis)
    positions = index.get_indexer(pd.Index(listed))
    for position, label in zip(positions, listed, strict=True):
        if position < 0:
            msg = f"`{name}`: {axis}_names has no {label!r}. {near_matches(label, index)}"
            raise KeyError(msg)
    return positions


def as_list(name: str, value: object) -> list[Any]:
    """One string, or several things, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        msg = f"`{name}` must be one or several, in a list, found {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    return list(value)


def resolve_groups(adata: AnnData, groupby: object) -> pd.Series:
    """The column `obs[groupby]` as a categorical without missing values."""
    if not isinstance(groupby, str):
        msg = f"`groupby` must be the name of a column of obs, found {groupby!r}."
        raise TypeError(msg)
    column = one_column(adata.obs, groupby, "obs", "groupby")
    if column.isna().any():
        count = int(column.isna().sum())
        msg = (
            f"obs[{groupby!r}] is missing in {count} cell(s), first {adata.obs_names[column.isna()][0]!r}. "
            f"Drop them (adata[adata.obs[{groupby!r}].notnull()]) or fill them first."
        )
        raise ValueError(msg)
    if column.dtype.kind in "fc":
        msg = (
            f"obs[{groupby!r}] holds real numbers (dtype {column.dtype}), and groups are needed. Cut them into groups "
            "(pd.cut), or if they are labels, make them strings (.astype(str))."
        )
        raise TypeError(msg)
    labels = as_labels(column, f"obs[{groupby!r}]")
    return labels.astype("category") if not isinstance(column.dtype, pd.CategoricalDtype) else column


def as_labels(column: pd.Series, where: str) -> pd.Series:
    """A column without missing values as strings; raise if two of its labels are written alike."""
    try:
        written = pd.Series([str(label) for label in column.unique()], dtype=object)
    except TypeError:  # lists, which cannot be compared
        written = pd.Series(dtype=object)
    if written.duplicated().any():
        msg = (
            f"{where} holds labels of different types that are all written {written[written.duplicated()].iloc[0]!r}. "
            "Rename one of them, or make the column strings (.astype(str)) if they mean the same."
        )
        raise ValueError(msg)
    return column.astype(str).astype(object)


def place_of(layer: str | None) -> str:
    """Words for the values that are read."""
    return "X" if layer is None else f"layers[{layer!r}]"
