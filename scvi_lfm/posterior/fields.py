"""Fields of an AnnData by name, with the words for one that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._keys import fit_keys
from .._validate import near_matches, one_column

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

_ON_JOINING = (
    "Were AnnData joined? Parts of one fitted AnnData keep its fit with ad.concat(parts, merge='same', "
    "uns_merge='same'). Cells that were fitted or placed apart share none: join their values, fit them anew or place "
    "all of them with lfm.tl.project(adata, reference)."
)


def entry(uns: Mapping[str, Any], name: str, key: str) -> Any:
    """What a fit stored under `name` in `uns[key]`."""
    if name not in uns:
        msg = f"uns[{key!r}] was not written by lfm.tl.fit: it has no {name!r}."
        if {"params", "version"} <= set(uns):
            msg = f"uns[{key!r}] has lost {name!r}, which lfm.tl.fit wrote. {_ON_JOINING}"
        raise KeyError(msg)
    return uns[name]


def find(adata: AnnData, container: str, name: str) -> Any:
    """The field `name` of obs, var, obsm, varm or uns."""
    fields = getattr(adata, container)
    if name not in fields:
        # the record is looked for first: where it is and a field of genes is not, that was lost as well
        lost = container in {"var", "varm"} or (container == "uns" and fit_keys(name).cell_factors in adata.obsm)
        words = f" {_ON_JOINING}" if lost else ""
        msg = f"{container} has no {name!r}. {near_matches(name, fields)} Run lfm.tl.fit(adata) first.{words}"
        raise KeyError(msg)
    return one_column(fields, name, container) if container in {"obs", "var"} else fields[name]
