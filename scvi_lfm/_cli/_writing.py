"""What the commands write: data and tables."""

from __future__ import annotations

import errno
import shutil
import warnings
from typing import TYPE_CHECKING, Any

from ._copies import copy, link
from ._drafts import writing
from ._files import read_data
from ._forgiving import Forgiving
from ._messages import CommandError, say
from ._results import results_of
from ._signals import check
from ._stores import others, write_fields, write_fields_zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import anndata as ad
    import h5py
    import pandas as pd

    from ._changes import Changes
    from ._drafts import Draft
    from ._sources import Source


def write_new(adata: ad.AnnData, draft: Draft) -> None:
    """Write all of an AnnData, h5ad or zarr by suffix."""
    _check_room(_n_bytes_of_whole(adata, draft), draft)
    with writing(draft), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if draft.path.suffix == ".zarr":
            adata.write_zarr(draft.path)
        else:
            _write_h5ad(adata, draft.path)


def write_data(adata: ad.AnnData, draft: Draft, source: Source) -> None:
    """Write an AnnData that was read from `source`, h5ad or zarr by suffix.

    A file of the same format is copied and takes the fields that have changed; values are not written anew.
    """
    changes, way = source.before.changes(adata), source.way
    if way in {"copy", "link"} and not source.is_unchanged():
        msg = f"{source.path} was changed while the command ran, so nothing was written: run it again"
        raise CommandError(msg)
    if way == "results":
        for layer in (name for container, name in changes.written if container == "layers"):
            say(f"warning: the layer {layer!r} is new, and not among the results")
        write_new(results_of(adata), draft)
    elif way == "whole":
        if not source.has_values:
            adata = read_data(source.path)
            changes.apply(adata)
        if lost := others(source.path):
            say(f"warning: {', '.join(lost)} in {source.path} is no part of an AnnData and is left out")
        write_new(adata, draft)
    else:
        new = _n_bytes_of(changes.written.values())
        _check_room(new + (source.size if way == "copy" else 0), draft)
        with writing(draft), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (copy if way == "copy" else link)(source.path, draft.path)
            check()
            _write_fields(draft.path, changes)


def write_table(table: pd.DataFrame, draft: Draft) -> None:
    """Write a table as csv."""
    with writing(draft):
        table.to_csv(draft.path, index=False)


def check_space(adata: ad.AnnData, draft: Draft, source: Source) -> None:
    """Raise if the disk has no room for what will be written."""
    needed = {"copy": lambda: source.size, "whole": lambda: _n_bytes_of_whole(adata, draft)}
    if source.way in needed:
        _check_room(needed[source.way](), draft)


def _check_room(needed: int, draft: Draft) -> None:
    try:
        free = shutil.disk_usage(draft.path.parent).free
    except OSError:  # a disk that does not say
        return
    if free < needed:
        msg = (
            f"cannot write {draft.target}: no room on its disk, {needed / 1e6:,.1f} MB are needed and "
            f"{free / 1e6:,.1f} MB are free. What was there is as it was."
        )
        raise OSError(errno.ENOSPC, msg)


def _n_bytes_of_whole(adata: ad.AnnData, draft: Draft) -> int:
    """Bytes of an h5ad, whose matrices are not compressed; nobody knows those of a zarr, whose are."""
    if draft.path.suffix != ".h5ad":
        return 0
    # layers may hold X, under None
    fields = ({**adata.layers, None: adata.X}, adata.obsm, adata.varm, adata.obsp, adata.varp)
    return sum(_n_bytes_of(field.values()) for field in fields)


def _write_h5ad(adata: ad.AnnData, path: Path) -> None:
    import h5py
    from anndata.experimental import write_dispatched

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    with path.open("w+b", buffering=0) as file:
        forgiving = Forgiving(file)

        def write(part: Callable[..., None], store: h5py.Group, name: str, values: Any, **options: Any) -> None:
            check()
            forgiving.check()
            options.pop("iospec")
            part(store, name, values, **options)

        with h5py.File(forgiving, "w") as store:
            write_dispatched(store, "/", adata, callback=write)
        forgiving.check()


def _write_fields(path: Path, changes: Changes) -> None:
    if path.suffix == ".zarr":
        write_fields_zarr(path, changes)
        return
    import h5py

    with path.open("r+b", buffering=0) as file:
        forgiving = Forgiving(file)
        with h5py.File(forgiving, "r+") as store:
            write_fields(store, changes, forgiving.check)
        forgiving.check()


def _n_bytes_of(values: Iterable[object]) -> int:
    return sum(_n_bytes(value) for value in values)


def _n_bytes(values: object) -> int:
    """Bytes of a dense or sparse matrix in memory; 0 for whatever else an AnnData may hold."""
    parts = [getattr(values, part, None) for part in ("data", "indices", "indptr")]
    return sum(int(getattr(part, "nbytes", 0)) for part in parts)
