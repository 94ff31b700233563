"""Files that the commands read, with one clear error for one that cannot be."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from .._memory import OutOfMemoryError, is_out_of_memory, naming_memory
from ._drafts import check_suffix
from ._messages import CommandError, one_line
from ._probe import check_survives

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

DATA = (".h5ad", ".zarr")
TABLE = (".csv",)
_LESS = "Close other programs, or look whether the file is whole: a damaged one may ask for any amount"


def read_data(path: Path) -> ad.AnnData:
    """Read an AnnData, h5ad or zarr by the suffix of its file."""
    suffix = check_suffix(path, DATA)
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
        with naming_memory(f"read {path}", _LESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if suffix == ".h5ad":
                check_survives(path)
            adata = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
        _check_indices(adata)
    except _reading_errors() as error:
        if is_out_of_memory(error):  # h5py has a KeyError for it as well
            msg = f"There is not enough memory to read {path}. {_LESS}. ({one_line(error)})"
            raise OutOfMemoryError(msg) from error
        msg = f"cannot read {path} as {suffix[1:]}, is it complete and written by anndata? ({one_line(error)})"
        raise CommandError(msg) from error
    return adata


def _check_indices(adata: ad.AnnData) -> None:
    """Raise if a sparse matrix points outside itself, as in a damaged file: no later step would look."""
    import scipy.sparse as sp

    for values in (adata.X, *adata.layers.values()):
        if sp.issparse(values) and values.format in {"csr", "csc"}:
            values.check_format(full_check=True)


def _reading_errors() -> tuple[type[Exception], ...]:
    """What anndata, h5py and zarr raise on files that they cannot make sense of."""
    errors: tuple[type[Exception], ...] = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
    try:
        # of a file from a newer anndata; it has no public name
        from anndata._io.specs.registry import IORegistryError
    except ImportError:
        return errors
    return (*errors, IORegistryError)
