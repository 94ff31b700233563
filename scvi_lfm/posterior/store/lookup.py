"""Fields of an AnnData by name, with the words for one that is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._keys import PARAMS, VERSION, fit_keys
from ..._validate import near_matches, one_column

if TYPE_CHECKING:
    from anndata import AnnData

ON_JOINING = (
    "Were AnnData joined? Parts of one fitted AnnData keep its fit with ad.concat(parts, merge='same', "
    "uns_merge='same'). Cells that were fitted or placed apart share none: join their values, fit them anew or place "
    "all of them with lfm.tl.project(adata, reference)."
)


def entry(uns: Mapping[str, Any], name: str, key: str) -> Any:
    """Entry that a fit stored under `name` in `uns[key]`."""
    if not isinstance(uns, Mapping) or name not in uns:
        msg = f"uns[{key!r}] was not written by lfm.tl.fit: it has no {name!r}."
        if isinstance(uns, Mapping) and {PARAMS, VERSION} <= set(uns):
            msg = f"uns[{key!r}] has lost {name!r}, which lfm.tl.fit wrote. {ON_JOINING}"
        raise KeyError(msg)
    return uns[name]


def find(adata: AnnData, container: str, name: str) -> Any:
    """The field `name` of obs, var, obsm, varm or uns."""
    fields = getattr(adata, container)
    if name not in fields:
        # the record is looked for first: where it is and a field of genes is not, that was lost as well
        lost = container in {"var", "varm"} or (container == "uns" and fit_keys(name).cell_factors in adata.obsm)
        words = f" {ON_JOINING}" if lost else ""
        msg = f"{container} has no {name!r}. {near_matches(name, fields)} Run lfm.tl.fit(adata) first.{words}"
        raise KeyError(msg)
    return one_column(fields, name, container) if container in {"obs", "var"} else fields[name]


def numbers(adata: AnnData, container: str, name: str, dtype: type = np.float64) -> np.ndarray:
    """The field `name`, with infinities for what float32, in which fits are stored, cannot hold."""
    values = np.asarray(find(adata, container, name))
    if values.dtype.kind not in "fiu":
        msg = (
            f"{container}[{name!r}] holds no numbers (dtype {values.dtype}): it was changed after the fit, or its file "
            "was damaged. Read another copy, or run lfm.tl.fit(adata) again."
        )
        raise ValueError(msg)
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False).astype(dtype, copy=False)
