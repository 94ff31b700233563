"""The source for what an AnnData holds: by the form of its `X` or layer, in memory or not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._validate import near_matches, place_of
from .canonical import canonical, computable
from .checks import check_dtype, check_positions
from .dask_chunks import DaskSource
from .memory import MemorySource
from .on_disk import DenseFile, SparseFile
from .reader import reading
from .selected import Selected

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from .source import CellSource


# what is no layer and yet asked for as one
_PLACES = {
    "X": "X is read where `layer` is left out.",
    "raw": "Of adata.raw, make one: adata.layers['raw'] = adata.raw[:, adata.var_names].X.",
}


def open_source(adata: AnnData, layer: str | None) -> CellSource:
    """The values of `X` or a layer, wherever they lie.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError
        The values are not real numbers, or of a form that is not read.
    ValueError
        There is no `X`, a sparse matrix is damaged, or a file has its values by genes.
    OSError
        A file cannot be read.
    """
    whole = getattr(adata, "_adata_ref", None) if adata.is_view else None
    if whole is not None and _kind_of_file(values := _values(whole, layer)) is not None:
        # what anndata selects from a file is read at once
        cells, genes = (
            _positions(which, size) for which, size in zip((adata._oidx, adata._vidx), whole.shape, strict=True)
        )
        return Selected(source_of(values, place_of(layer)), cells, genes)
    return source_of(_values(adata, layer), place_of(layer))


def source_of(values: Any, where: str) -> CellSource:
    """The source for an array of any form; `where` it is, in words."""
    opens = _kind_of_file(values)
    if opens is None and is_dask(values):
        opens = _refuse_by_genes if _is_by_genes(values) else DaskSource.of
    if opens is not None:
        with reading(where):
            dtype = values.dtype
        check_dtype(np.empty(0, dtype), where)
        return opens(values, where)
    check_dtype(values, where)
    if not sp.issparse(values):
        return MemorySource(computable(np.asarray(values)))
    check_positions(values, where)
    return MemorySource(canonical(values))


def _kind_of_file(values: Any) -> Callable[[Any, str], CellSource] | None:
    """Opener of values that are in a file; None for others."""
    import h5py
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(values, CSRDataset):
        return SparseFile.of
    if isinstance(values, CSCDataset):
        return _refuse_by_genes
    zarr = sys.modules.get("zarr")
    if isinstance(values, h5py.Dataset) or (zarr is not None and isinstance(values, zarr.Array)):
        return DenseFile
    return None


def is_elsewhere(values: Any) -> bool:
    """Whether values are in a file, or in a dask array."""
    return _kind_of_file(values) is not None or is_dask(values)


def is_dask(values: Any) -> bool:
    """Whether values are a dask array."""
    dask_array = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(values, dask_array.Array)


def _is_by_genes(values: Any) -> bool:
    """Whether a dask array has all cells of some genes in each chunk, as those read lazily from a file by genes."""
    n_of_cells, n_of_genes = values.numblocks
    return getattr(values._meta, "format", None) == "csc" and n_of_cells == 1 and n_of_genes > 1


def _refuse_by_genes(values: Any, where: str) -> CellSource:
    msg = (
        f"{where} is compressed by genes (CSC), of which cells cannot be read without reading all of it. "
        f"Call adata = adata.to_memory(); for a file by cells, then adata.{where} = adata.{where}.tocsr() and "
        "adata.write_h5ad(filename)."
    )
    raise ValueError(msg)


def _positions(which: Any, size: int) -> np.ndarray | None:
    """Positions that a view takes of an axis; None: all."""
    found = np.arange(size)[which]
    return None if len(found) == size and (found[:-1] < found[1:]).all() else found


def _values(adata: AnnData, layer: str | None) -> Any:
    if layer is None:
        if adata.X is None:
            layers = ", ".join(repr(name) for name in adata.layers) or "none"
            msg = f"The AnnData has no X. Pass layer= with the name of a layer (there are: {layers})."
            raise ValueError(msg)
        return adata.X
    if not isinstance(layer, str):
        msg = f"`layer` must be the name of a layer or None, found {layer!r}."
        raise TypeError(msg)
    if layer not in adata.layers:
        msg = f"There is no layer {layer!r}. {_PLACES.get(layer) or near_matches(layer, adata.layers)}"
        raise KeyError(msg)
    return adata.layers[layer]
