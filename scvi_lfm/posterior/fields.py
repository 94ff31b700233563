"""Fields of an AnnData by name, with the words for one that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._validate import near_matches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData


def entry(uns: Mapping[str, Any], name: str, key: str) -> Any:
    """What a fit stored under `name` in `uns[key]`."""
    if name not in uns:
        msg = f"uns[{key!r}] was not written by lfm.tl.fit: it has no {name!r}."
        raise KeyError(msg)
    return uns[name]


def find(adata: AnnData, container: str, name: str) -> Any:
    """The field `name` of obs, var, obsm, varm or uns."""
    fields = getattr(adata, container)
    if name not in fields:
        msg = f"{container} has no {name!r}. {near_matches(name, fields)} Run lfm.tl.fit(adata) first."
        raise KeyError(msg)
    return fields[name]
