"""Finding what a tool stored, or saying which call stores it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._keys import DEFAULT_KEYS, fit_keys
from .._validate import check_anndata, check_count, check_key, near_matches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def stored_fields(adata: AnnData, key: str, tool: str, *fields: str) -> Mapping[str, Any]:
    """The dictionary `uns[key]` that `tool` wrote."""
    check_anndata(adata)
    check_key("key", key)
    if key not in adata.uns:
        msg = f"uns has no {key!r}. {near_matches(key, adata.uns)} {advice(tool, key)}"
        raise KeyError(msg)
    stored = adata.uns[key]
    for field in fields:
        if not isinstance(stored, Mapping) or field not in stored:
            msg = f"uns[{key!r}] was not written by lfm.tl.{tool}: it has no {field!r}. {advice(tool, key)}"
            raise KeyError(msg)
    return stored


def array_of_fit(adata: AnnData, key: str, frame: str, name: str) -> np.ndarray:
    """The array of a fit in obsm or varm (`frame`) that `FitKeys` has under `name`."""
    fields, place = getattr(adata, frame), getattr(fit_keys(key), name)
    if place not in fields:
        msg = f"{frame} has no {place!r}. {near_matches(place, fields)} {advice('fit', key)}"
        raise KeyError(msg)
    return np.asarray(fields[place])


def advice(tool: str, key: str) -> str:
    more = ", groupby" if tool == "rank_genes" else ""
    more += "" if key == DEFAULT_KEYS[tool] else f", key_added={key!r}"
    return f"Run lfm.tl.{tool}(adata{more}) first."


def listed(name: str, value: object) -> list[Any]:
    """One thing or several as a list without repeats."""
    listed = list(dict.fromkeys(value)) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not listed:
        msg = f"`{name}` names nothing; pass at least one, or None."
        raise ValueError(msg)
    return listed


def check_factors(factors: int | Sequence[int], n_factors: int) -> list[int]:
    """`factors` as a list of indices below `n_factors`."""
    checked = [check_count("factors", factor, minimum=0) for factor in listed("factors", factors)]
    for factor in checked:
        if factor >= n_factors:
            msg = f"`factors` asks for factor {factor}, but the fit has {n_factors}, counted from 0 to {n_factors - 1}."
            raise ValueError(msg)
    return checked
