"""From an AnnData to checked values: the one place that reads `X` and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._memory import naming_memory
from .._validate import place_of
from .checks import check_finite, check_names
from .kind import kind_of
from .matrix import CellMatrix
from .memory import MemorySource
from .opening import open_source

# values elsewhere that take no more are read into memory once, rather than block by block again and again
MOST_BYTES_READ_IN = 2**28
BYTES_OF_PLACE = 4

if TYPE_CHECKING:
    from anndata import AnnData


@naming_memory("read the values")
def read_matrix(
    adata: AnnData, layer: str | None = None, *, genes: np.ndarray | None = None, stored_only: bool = False
) -> CellMatrix:
    """Read cells by genes, checked, without altering or densifying anything.

    Parameters
    ----------
    adata
        Annotated data; views are fine.
    layer
        Name of the layer to read; None reads `X`.
    genes
        Boolean mask of the genes to keep, (m,); None keeps all.
    stored_only
        Whether entries that a sparse matrix does not store are no values; for the record of their kind alone.

    Returns
    -------
    The values, with the record of their kind. They share memory with the AnnData wherever its form allows it, and stay
    in its file, or in its dask array, where they are many.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError
        The values are not real numbers, or of a form that is not read.
    ValueError
        There is no `X`, names repeat, or a value is NaN or infinite.
    OSError
        A file cannot be read.
    """
    check_names(adata)
    where = place_of(layer)
    source = open_source(adata, layer)
    if genes is not None and not genes.all():
        source = source.at_genes(np.flatnonzero(genes))
    names = adata.var_names if genes is None else adata.var_names[genes]
    check_finite(source, where, adata.obs_names, names)
    if source.summary.n_stored * (source.dtype.itemsize + BYTES_OF_PLACE) <= MOST_BYTES_READ_IN:
        source = MemorySource(source.whole())
    return CellMatrix(source, kind=kind_of(source.summary, stored_only=stored_only))
