"""An h5ad file or a zarr store, read and changed part by part."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._changes import FRAMES, MAPPINGS
from ._messages import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import anndata as ad

    from ._changes import Changes

Store = Any  # a group of h5py or of zarr
PARTS = ("X", *FRAMES, *MAPPINGS, "raw")


@contextmanager
def reading(path: Path) -> Iterator[Store]:
    """A file or a store to read from, closed in the end."""
    store = _open(path)
    try:
        yield store
    finally:
        if path.suffix == ".h5ad":
            store.file.close()


def _open(path: Path) -> Any:
    if path.suffix == ".h5ad":
        import h5py

        # a lock that ends with the process; where a disk has none, none is needed to read
        return h5py.File(path, "r", locking="best-effort")
    import zarr

    return zarr.open_group(path, mode="r")


def read_parts(path: Path, *, values: bool) -> ad.AnnData:
    """Read what an AnnData is made of, and leave alone whatever else a file holds.

    Values, X, layers and raw, are left in the file, to be read from it piece by piece where they are by cells, or left
    out. Files in encodings of old are read whole.
    """
    import anndata as ad

    if values:
        store = _open(path)  # open for as long as one of its values is there
        if _is_current(store):
            return ad.AnnData(**_described(store), **_values(store))
    else:
        with reading(path) as store:
            if _is_current(store):
                return ad.AnnData(**_described(store))
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def _described(store: Store) -> dict[str, Any]:
    """All but the values."""
    import anndata as ad

    return {name: ad.io.read_elem(store[name]) for name in (*FRAMES, *MAPPINGS) if name in store and name != "layers"}


def _values(store: Store) -> dict[str, Any]:
    import anndata as ad

    parts = {"X": _stored(store["X"])} if "X" in store else {}
    if "layers" in store:
        parts["layers"] = {name: _stored(store["layers"][name]) for name in store["layers"]}
    if "raw" in store and _encoding(raw := store["raw"]) == "raw":  # where there is none it may be a null
        parts["raw"] = {name: ad.io.read_elem(raw[name]) for name in ("var", "varm") if name in raw}
        parts["raw"]["X"] = _stored(raw["X"])
    return parts


def _stored(part: Any) -> Any:
    """A matrix that stays in the file; read into memory is what is none, or compressed by genes, so cells are apart."""
    import anndata as ad

    encoding = _encoding(part)
    if encoding == "csr_matrix":
        return ad.io.sparse_dataset(part)
    return part if encoding == "array" else ad.io.read_elem(part)


def _encoding(part: Any) -> str:
    return str(part.attrs.get("encoding-type", ""))


def _is_current(store: Store) -> bool:
    """Whether it is written as anndata writes since 0.8."""
    return _encoding(store) == "anndata" and all(name in store for name in FRAMES)


def can_take_fields(path: Path) -> bool:
    """Whether fields can be written into a file: one in an encoding of old would then hold some of both."""
    with reading(path) as store:
        return (
            _is_current(store)
            and all(
                _encoding(store[name]) == "dataframe" and store[name].attrs.get("encoding-version") == "0.2.0"
                for name in FRAMES
            )
            and all(_encoding(store[name]) == "dict" for name in MAPPINGS if name in store)
        )


def others(path: Path) -> list[str]:
    """Names of what is no part of an AnnData, and stays only in a copy."""
    with reading(path) as store:
        return sorted(set(store) - set(PARTS)) if _is_current(store) else []


def write_fields_zarr(path: Path, changes: Changes) -> None:
    """Write fields into a zarr store, and what it says of itself in one place, where it does."""
    import zarr

    is_consolidated = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    store = zarr.open_group(path, mode="r+", use_consolidated=False)
    write_fields(store, changes, lambda: None)
    if is_consolidated:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store.store)


def write_fields(store: Store, changes: Changes, between: Callable[[], None]) -> None:
    """Write fields into an open store, with a call before each; nothing else in it is touched."""
    import anndata as ad

    for container in FRAMES:
        _check_index_stays(store[container], container, [name for of, name in changes.written if of == container])
    for container, name in changes.removed:
        between()
        if name in store[container]:
            del store[container][name]
    for (container, name), value in changes.written.items():
        between()
        if container not in store:
            ad.io.write_elem(store, container, {})
        ad.io.write_elem(store[container], name, _plain(value) if container in FRAMES else value)
    for container in FRAMES:
        _order_columns(store[container], container, changes)


def _plain(column: Any) -> Any:
    """The array of a column, of NumPy or an extension's own."""
    import numpy as np

    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


def _check_index_stays(frame: Store, container: str, names: list[str]) -> None:
    index = frame.attrs["_index"]
    if index in names:
        msg = f"the names of {container} are stored as {index!r}, which a result would overwrite: pass another --key"
        raise CommandError(msg)


def _order_columns(frame: Store, container: str, changes: Changes) -> None:
    before = [str(name) for name in frame.attrs["column-order"]]
    removed = {name for of, name in changes.removed if of == container}
    new = [name for of, name in changes.written if of == container and name not in before]
    after = [name for name in before if name not in removed] + new
    if after != before:
        frame.attrs["column-order"] = after
