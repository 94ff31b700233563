"""What the commands write: data and tables."""

from __future__ import annotations

import errno
import io
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

from ._drafts import writing
from ._signals import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad
    import pandas as pd
    from typing_extensions import Buffer

    from ._drafts import Draft


_LARGE = 2**20


def write_data(adata: ad.AnnData, draft: Draft) -> None:
    """Write an AnnData, h5ad or zarr by the suffix of its file."""
    check_space(adata, draft)
    with writing(draft), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if draft.path.suffix == ".zarr":
            adata.write_zarr(draft.path)
        else:
            _write_h5ad(adata, draft.path)


def write_table(table: pd.DataFrame, draft: Draft) -> None:
    """Write a table as csv."""
    with writing(draft):
        table.to_csv(draft.path, index=False)


def check_space(adata: ad.AnnData, draft: Draft) -> None:
    """Raise if the disk has no room for an h5ad of these data, whose matrices are not compressed."""
    # layers may hold X, under None
    fields = ({**adata.layers, None: adata.X}, adata.obsm, adata.varm, adata.obsp, adata.varp)
    needed = sum(_n_bytes(values) for field in fields for values in field.values())
    free = shutil.disk_usage(draft.path.parent).free
    if draft.path.suffix == ".h5ad" and free < needed:
        msg = (
            f"cannot write {draft.target}: no room on its disk, {needed / 1e6:,.1f} MB are needed and "
            f"{free / 1e6:,.1f} MB are free. What was there is as it was."
        )
        raise OSError(errno.ENOSPC, msg)


def _write_h5ad(adata: ad.AnnData, path: Path) -> None:
    import h5py
    from anndata.experimental import write_dispatched

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    with path.open("w+b", buffering=0) as file:
        forgiving = _Forgiving(file)

        def write(part: Callable[..., None], store: h5py.Group, name: str, values: Any, **options: Any) -> None:
            check()
            forgiving.check()
            options.pop("iospec")
            part(store, name, values, **options)

        with h5py.File(forgiving, "w") as store:
            write_dispatched(store, "/", adata, callback=write)
        forgiving.check()


class _Forgiving(io.RawIOBase):
    """A file whose writing never fails: what HDF5 holds is out of order once it did, and then it crashes the process.

    The first error is kept, to be raised where HDF5 is at rest. What is written after it is kept in memory, because
    HDF5 reads some of it again: all but large pieces, which are values.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the error of a write, if one has failed."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        if self.error is None:
            try:
                self.file.truncate(size)
            except OSError as error:
                self.error = error
        return self.file.tell() if size is None else size

    def write(self, values: Buffer, /) -> int:
        left, start = memoryview(values).cast("B"), self.file.tell()
        size = len(left)
        while self.error is None and len(left):
            try:
                left = left[self.file.write(left) :]
            except OSError as error:
                self.error = error
        if 0 < len(left) <= _LARGE:
            self.kept.append((start + size - len(left), bytes(left)))
        self.file.seek(start + size)
        return size

    def readinto(self, buffer: Buffer, /) -> int:
        values, start = memoryview(buffer).cast("B"), self.file.tell()
        size = self.file.readinto(values) or 0
        if self.error is not None:
            values[size:] = bytes(len(values) - size)
            size = len(values)
            for place, written in self.kept:
                first, last = max(start, place), min(start + size, place + len(written))
                if first < last:
                    values[first - start : last - start] = written[first - place : last - place]
            self.file.seek(start + size)
        return size


def _n_bytes(values: object) -> int:
    """Bytes of a dense or sparse matrix; 0 for whatever else an AnnData may hold."""
    parts = [getattr(values, part, None) for part in ("data", "indices", "indptr")]
    return sum(int(getattr(part, "nbytes", 0)) for part in parts)
