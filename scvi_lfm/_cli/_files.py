"""Files that the commands read, with one clear error for one that cannot be."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from .._keys import PRIOR_GENE_COV
from .._memory import OutOfMemoryError, is_out_of_memory, naming_memory
from .._spelling import near_matches
from ._drafts import check_suffix
from ._messages import CommandError, one_line
from ._probe import check_survives

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

DATA = (".h5ad", ".zarr")
TABLE = (".csv",)
_PIECE = 10_000_000  # indices, 80 MB at most
_LESS = "Close other programs, or look whether the file is whole: a damaged one may ask for any amount"


def read_data(path: Path, *, values: bool = True) -> ad.AnnData:
    """Read an AnnData, h5ad or zarr by the suffix of its file; without X and layers where no tool needs them.

    They stay in the file, to be read piece by piece.
    """
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
    from ._stores import read_parts

    try:
        with naming_memory(f"read {path}", _LESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if suffix == ".h5ad":
                check_survives(path)
            adata = read_parts(path, values=values)
        _check_indices(adata)
    except _reading_errors() as error:
        if is_out_of_memory(error):  # h5py has a KeyError for it as well
            msg = f"There is not enough memory to read {path}. {_LESS}. ({one_line(error)})"
            raise OutOfMemoryError(msg) from error
        msg = f"cannot read {path} as {suffix[1:]}, is it complete and written by anndata? ({one_line(error)})"
        raise CommandError(msg) from error
    return adata


def check_fitted(adata: ad.AnnData, path: Path, key: str) -> None:
    """Raise unless there is a fit under this key."""
    if key not in adata.uns:
        fits = [name for name, value in adata.uns.items() if isinstance(value, dict) and PRIOR_GENE_COV in value]
        advice = near_matches(key, fits) if fits else f"Make one: scvi-lfm fit {path} OUT"
        msg = f"{path} holds no fit {key!r}. {advice}"
        raise CommandError(msg)


def _check_indices(adata: ad.AnnData) -> None:
    """Raise if a sparse matrix points outside itself, as in a damaged file: no later step would look."""
    import scipy.sparse as sp

    for values in (adata.X, *adata.layers.values()):
        if sp.issparse(values) and values.format in {"csr", "csc"}:
            values.check_format(full_check=True)
        elif hasattr(values, "group"):
            _check_stored_indices(values)


def _check_stored_indices(values: Any) -> None:
    """The same of a sparse matrix in a file, piece by piece."""
    import numpy as np

    starts, indices = values.group["indptr"][...], values.group["indices"]
    n_major, n_minor = values.shape if values.format == "csr" else values.shape[::-1]
    whole = len(starts) == n_major + 1 and starts[0] == 0 and starts[-1] == indices.shape[0]
    whole = whole and indices.shape == values.group["data"].shape and bool(np.all(np.diff(starts) >= 0))
    for start in range(0, indices.shape[0] if whole else 0, _PIECE):
        piece = indices[start : start + _PIECE]
        whole = whole and bool(piece.min() >= 0 and piece.max() < n_minor)
    if not whole:
        msg = f"a sparse matrix points outside of its {values.shape[0]:,} x {values.shape[1]:,} values"
        raise ValueError(msg)


def _reading_errors() -> tuple[type[Exception], ...]:
    """What anndata, h5py and zarr raise on files that they cannot make sense of."""
    errors: tuple[type[Exception], ...] = (
        AttributeError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    )
    try:
        # of a file from a newer anndata; it has no public name
        from anndata._io.specs.registry import IORegistryError
    except ImportError:
        return errors
    return (*errors, IORegistryError)
