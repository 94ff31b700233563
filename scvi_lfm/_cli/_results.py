"""The results of the tools without the data they are of, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._keys import WRITTEN
from ..posterior.store.schema import fit_places
from ..tl._overwriting import noted, write_notes
from ._changes import FRAMES, MAPPINGS
from ._messages import CommandError

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad
    import pandas as pd

    from ._changes import Place

_FITS = ("fit", "project")


def results_of(adata: ad.AnnData) -> ad.AnnData:
    """Cells and genes with the columns that describe them, and what tools wrote, without values of any kind."""
    import anndata as ad

    found = ad.AnnData(obs=adata.obs.copy(), var=adata.var.copy())
    found.uns[WRITTEN] = adata.uns[WRITTEN]
    for container, name in _noted(adata):
        if container in {"obsm", "varm", "uns"}:
            getattr(found, container)[name] = getattr(adata, container)[name]
    return found


def put_back(data: ad.AnnData, results: ad.AnnData, paths: tuple[Path, Path]) -> list[Place]:
    """Write results into the data that they are of, matched by name; nothing but earlier results is replaced.

    Returns
    -------
    The fields written.
    """
    ours, there = _noted(results), _noted(data)
    if not ours:
        msg = f"{paths[1]} holds no results. Make them: scvi-lfm fit {paths[0]} {paths[1]} --results-only"
        raise CommandError(msg)
    rows = {
        "obs": _order(data.obs_names, results.obs_names, "cell", paths),
        "var": _order(data.var_names, results.var_names, "gene", paths),
    }
    for place in ours:
        container, name = place
        if name in getattr(data, container) and place not in there:
            msg = (
                f"{container}[{name!r}] of {paths[0]} is no result of a tool of this package and would be overwritten "
                f"by that of {paths[1]}: rename it, or fit under another --key"
            )
            raise CommandError(msg)
    # of an earlier fit under the same key, what the new one does not have
    fits = [name for (container, name), tool in ours.items() if container == "uns" and tool in _FITS]
    for place in {place for key in fits for place in fit_places(key)} & set(there) - set(ours):
        container, name = place
        del getattr(data, container)[name]
        del there[place]
    for container, name in ours:
        value = getattr(results, container)[name]
        if container != "uns":
            value = _take(value, rows[container[:3]])
        getattr(data, container)[name] = value
    write_notes(data, there | ours)
    return list(ours)


def _noted(adata: ad.AnnData) -> dict[Place, str]:
    """The fields that tools have noted that they wrote, of those that are there, and which tool."""
    there = {name: getattr(adata, name) for name in (*FRAMES, *MAPPINGS)}
    return {place: tool for place, tool in noted(adata).items() if place[1] in there.get(place[0], ())}


def _order(wanted: pd.Index, found: pd.Index, what: str, paths: tuple[Path, Path]) -> Any:
    """Where the results of each cell or gene of the data are; None where they are in order."""
    if wanted.equals(found):
        return None
    for names, path in zip((wanted, found), paths, strict=True):
        if not names.is_unique:
            name = names[names.duplicated()][0]
            msg = f"{path} names two {what}s {name!r}, and {paths[0]} and {paths[1]} differ in order: names must differ"
            raise CommandError(msg)
    for here, there, (path, other) in ((wanted, found, paths), (found, wanted, paths[::-1])):
        if len(missing := here[~here.isin(there)]):
            msg = f"{other} has no {what} {missing[0]!r}, which {path} has: these are results of other data"
            raise CommandError(msg)
    return found.get_indexer(wanted)


def _take(value: Any, rows: Any) -> Any:
    """The rows of an array, or of a column, as an array: the names of the results may be in another order."""
    if hasattr(value, "iloc"):
        value = value.array if rows is None else value.array[rows]
        return value.to_numpy() if type(value).__name__ == "NumpyExtensionArray" else value
    return value if rows is None else value[rows]
