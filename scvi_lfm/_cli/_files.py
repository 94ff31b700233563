"""Files in and out: read with one clear error, written beside their place and then moved there."""

from __future__ import annotations

import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ._messages import CommandError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

DATA = (".h5ad", ".zarr")
TABLE = (".csv",)


def read_data(path: Path) -> ad.AnnData:
    """Read an AnnData, h5ad or zarr by the suffix of its file."""
    suffix = _check_suffix(path, DATA)
    if not path.exists():
        msg = f"no such file: {path}"
        raise CommandError(msg)
    if path.is_dir() != (suffix == ".zarr"):
        msg = f"{path} is {'a folder' if path.is_dir() else 'a file'}, which no {suffix} data are"
        raise CommandError(msg)
    if not os.access(path, os.R_OK):
        msg = f"no permission to read {path}"
        raise CommandError(msg)
    import anndata as ad

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
        _check_indices(adata)
    except _reading_errors() as error:
        msg = f"cannot read {path} as {suffix[1:]}, is it complete and written by anndata? ({one_line(error)})"
        raise CommandError(msg) from error
    return adata


def write_data(adata: ad.AnnData, path: Path) -> None:
    """Write an AnnData, h5ad or zarr by the suffix of its file."""
    check_space(adata, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".zarr":
                adata.write_zarr(path)
            else:
                adata.write_h5ad(path)
    except OSError as error:
        msg = f"cannot write the output: {one_line(error)}"
        raise CommandError(msg) from error


def check_space(adata: ad.AnnData, path: Path) -> None:
    """Raise if the disk has no room for an h5ad of these data: HDF5 crashes the process when a disk fills up."""
    fields = (adata.layers, adata.obsm, adata.varm, adata.obsp, adata.varp)
    needed = _n_bytes(adata.X) + sum(_n_bytes(values) for field in fields for values in field.values())
    free = shutil.disk_usage(path.parent).free
    if path.suffix == ".h5ad" and free < needed + 2**20:
        msg = f"no room on the disk of the output: {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise CommandError(msg)


@contextmanager
def new_file(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A place to write `path` to; what is there in the end replaces `path`, unless an error or Ctrl-C came first.

    That the file can be written is checked on entry, before any work.
    """
    suffix = _check_suffix(path, suffixes)
    target = path.resolve()
    _check_target(path, target, suffix)
    try:
        folder = TemporaryDirectory(prefix=f".{path.name}.", dir=target.parent, ignore_cleanup_errors=True)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise CommandError(msg) from error
    with folder as name:
        draft = Path(name) / f"draft{suffix}"
        yield draft
        _move(draft, target)


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    if path.suffix not in suffixes:
        msg = f"{path} must end in {' or '.join(suffixes)}"
        raise CommandError(msg)
    return path.suffix


def _check_indices(adata: ad.AnnData) -> None:
    """Raise if a sparse matrix points outside itself, as in a damaged file: no later step would look."""
    import scipy.sparse as sp

    for values in (adata.X, *adata.layers.values()):
        if sp.issparse(values) and values.format in {"csr", "csc"}:
            values.check_format(full_check=True)


def _check_target(path: Path, target: Path, suffix: str) -> None:
    reason = None
    if not target.parent.is_dir():
        reason = f"there is no folder {target.parent}"
    elif suffix == ".zarr" and target.is_dir():
        # only a store of the same kind may be replaced as a whole
        if not any((target / marker).exists() for marker in (".zgroup", "zarr.json")):
            reason = "there is a folder of that name that holds something else"
    elif target.exists() and not target.is_file():
        reason = "there is something of that name that is not a file"
    elif target.exists() and suffix == ".zarr":
        reason = "there is a file of that name"
    if reason is None and target.exists() and not os.access(target, os.W_OK):
        reason = "no permission to replace it"
    if reason is not None:
        msg = f"cannot write {path}: {reason}"
        raise CommandError(msg)


def _move(draft: Path, target: Path) -> None:
    if not target.is_dir():
        draft.replace(target)
        return
    replaced = draft.with_name("replaced")
    target.rename(replaced)
    try:
        draft.rename(target)
    except BaseException:
        replaced.rename(target)
        raise


def _n_bytes(values: object) -> int:
    """Bytes of a dense or sparse matrix; 0 for whatever else an AnnData may hold."""
    parts = [getattr(values, part, None) for part in ("data", "indices", "indptr")]
    return sum(int(getattr(part, "nbytes", 0)) for part in parts)


def _reading_errors() -> tuple[type[Exception], ...]:
    """What anndata, h5py and zarr raise on files that they cannot make sense of."""
    errors: tuple[type[Exception], ...] = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
    try:
        # of a file from a newer anndata; it has no public name
        from anndata._io.specs.registry import IORegistryError
    except ImportError:
        return errors
    return (*errors, IORegistryError)
