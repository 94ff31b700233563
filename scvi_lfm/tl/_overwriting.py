"""What a result may overwrite: an earlier one of the same tool, and nothing else.

Every tool notes in `uns["lfm_written"]` which fields it wrote. Results without a note (of an earlier version, or after
a concatenation, which drops `uns`) are known by their parts or, where these do not tell, by the tool's default key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from .._fit_arguments import ARGUMENTS
from .._keys import DEFAULT_KEYS, PARAMS, PRIOR_GENE_COV, WRITTEN
from .._validate import check_key, check_writable, itself_or_copy, one_column
from ..posterior.store.schema import ALONG_CELLS, fit_places
from ..posterior.store.transaction import all_or_nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    # a container of an AnnData, and a name in it
    Place = tuple[str, str]


def obs_places(names: object) -> list[Place]:
    """The columns of obs that an argument such as `covariates` names; what else it may be is for others to refuse."""
    listed = [names] if isinstance(names, str) else names
    return [("obs", str(name)) for name in listed] if isinstance(listed, Sequence) else []


def check_free(
    adata: AnnData,
    tool: str,
    key: object,
    places: Callable[[str], Sequence[Place]],
    *,
    argument: str = "key_added",
    reads: Sequence[Place] = (),
    copy: bool = False,
) -> None:
    """Raise unless the fields that `places` makes of `key` are free, or hold an earlier result of the same tool.

    `reads` are fields that the call itself reads, and leaves as they are. With `copy`, a copy is written to.
    """
    check_writable(adata, copy=copy)
    name = check_key(argument, key)
    wanted, notes = places(name), noted(adata)
    earlier = _is_earlier(adata, tool, name, wanted, notes)
    protected = _protected(adata, None if tool not in {"fit", "project"} else name)
    protected |= dict.fromkeys(reads, "is read by this call and")
    for container, field in wanted:
        place, mend = (container, field), ""
        if not _exists(adata, place):
            continue
        if container in {"obs", "var"}:
            one_column(getattr(adata, container), field, container)
        what, by = protected.get(place), notes.get(place)
        if what is None:
            if by == tool or (by is None and earlier):
                continue
            what = f"was not written by lfm.tl.{tool} and" if by is None else f"was written by lfm.tl.{by} and"
            mend = f", or delete it first: del adata.{container}[{field!r}]"
        msg = (
            f"`{argument}`: {container}[{field!r}] {what} would be overwritten. Pass another {argument}, such as "
            f"{_free_key(adata, tool, places)!r}{mend}."
        )
        raise ValueError(msg)


def write_fields(adata: AnnData, tool: str, fields: Mapping[Place, Any], *, copy: bool = False) -> AnnData | None:
    """Write the fields of a result, all of them or none, and note which tool did; the copy if `copy`."""
    adata = itself_or_copy(adata, copy=copy)
    with all_or_nothing(adata):
        for (container, name), values in fields.items():
            getattr(adata, container)[name] = values
        note_written(adata, tool, list(fields))
    return adata if copy else None


def note_written(adata: AnnData, tool: str, places: Sequence[Place]) -> None:
    """Note which tool wrote these fields, those that there are."""
    found = {place: by for place, by in noted(adata).items() if place not in places}
    write_notes(adata, found | {place: tool for place in places if _exists(adata, place)})


def noted(adata: AnnData) -> dict[Place, str]:
    """Which tool has noted that it wrote which field; whatever else stands there is no note."""
    record = adata.uns.get(WRITTEN)
    found = record.items() if isinstance(record, Mapping) else ()
    parts = [(container, names) for container, names in found if isinstance(names, Mapping)]
    return {(container, field): str(by) for container, names in parts for field, by in names.items()}


def write_notes(adata: AnnData, notes: Mapping[Place, str]) -> None:
    """Write which tool wrote which field, in place of what was noted before."""
    record: dict[str, dict[str, str]] = {}
    for (container, field), tool in notes.items():
        record.setdefault(container, {})[field] = tool
    adata.uns[WRITTEN] = record


def _exists(adata: AnnData, place: Place) -> bool:
    container, field = place
    return field in getattr(adata, container) or place == ("uns", WRITTEN)


def _free_key(adata: AnnData, tool: str, places: Callable[[str], Sequence[Place]]) -> str:
    default = DEFAULT_KEYS[tool]
    keys = (default if k == 1 else f"{default}_{k}" for k in count(1))
    return next(key for key in keys if not any(_exists(adata, place) for place in places(key)))


def _protected(adata: AnnData, own: str | None) -> dict[Place, str]:
    """Fields of which fits consist, but for the one under the key `own`, and those that any of them read."""
    found: dict[Place, str] = {("uns", WRITTEN): "says which tool wrote what and"}
    for stem, stored in adata.uns.items():
        if not _is_fit(stored):
            continue
        if stem != own:
            found |= dict.fromkeys(fit_places(stem), f"is a field of the fit {stem!r}, which")
            found["uns", stem] = "holds a fit, which"
        params = stored[PARAMS]
        named = {name: known.reads for name, known in ARGUMENTS.items() if known.reads and name in params}
        read = [(frame, str(field)) for name, frame in named.items() for field in np.atleast_1d(params[name])]
        found = dict.fromkeys(read, f"was read by the fit {stem!r} and") | found
    return found


def _is_earlier(adata: AnnData, tool: str, key: str, wanted: Sequence[Place], notes: Mapping[Place, str]) -> bool:
    """Whether what is under `key` is a result of the tool that was not noted."""
    if any(place in notes for place in wanted):
        return False
    default, stored = key == DEFAULT_KEYS[tool], adata.uns.get(key)
    if tool in _LOOKS and stored is not None:
        # a projection looks like a fit
        return _LOOKS[tool](stored) and (tool != "project" or default)
    left = {"rank_cells": wanted, "fit": [(field.frame, field.key(key)) for field in ALONG_CELLS]}
    return default or (tool in left and all(_exists(adata, place) for place in left[tool]))


def _is_fit(stored: object) -> bool:
    return isinstance(stored, Mapping) and PRIOR_GENE_COV in stored and isinstance(stored.get(PARAMS), Mapping)


def _is_ranking(stored: object) -> bool:
    params = stored.get(PARAMS) if isinstance(stored, Mapping) else None
    return isinstance(params, Mapping) and params.get("method") == "lfm"


def _is_scan(stored: object) -> bool:
    return isinstance(stored, Mapping) and "depth_correlation" in stored


_LOOKS = {"fit": _is_fit, "project": _is_fit, "rank_genes": _is_ranking, "anomalies": _is_scan}
