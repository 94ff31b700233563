"""From an AnnData to checked values: the one place that reads `X` and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._memory import naming_memory
from .._validate import near_matches, place_of
from .checks import check_dtype, check_finite, check_names
from .kind import kind_of
from .matrix import CellMatrix
from .memory import MemorySource
from .normalised import log_normalised

if TYPE_CHECKING:
    from anndata import AnnData

    from .source import CellSource


@naming_memory("read the values")
def read_matrix(
    adata: AnnData,
    layer: str | None = None,
    *,
    genes: np.ndarray | None = None,
    normalize: float | None = None,
    totals: np.ndarray | None = None,
    stored_only: bool = False,
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
    normalize
        Sum over all genes, kept or not, that each cell is scaled to before log1p is taken; None takes values as they
        are.
    totals
        Instead of the sums over all genes, to normalise by: those of a fit, (n,).
    stored_only
        Whether entries that a sparse matrix does not store are no values; for the record of their kind alone.

    Returns
    -------
    The values, with the record of their kind. They share memory with the AnnData wherever its form allows it.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError
        The values are not real numbers, or not in memory.
    ValueError
        There is no `X`, names repeat, or a value is NaN, infinite or, where they are to be normalised, negative.
    """
    check_names(adata)
    values = _select(adata, layer)
    where = place_of(layer)
    check_dtype(values, where)
    values = canonical(values) if sp.issparse(values) else _computable(np.asarray(values))
    source: CellSource = MemorySource(values)
    names, normalised = adata.var_names, None
    if normalize is not None:
        source, normalised = log_normalised(source, normalize, where, adata.obs_names, names, totals)
    if genes is not None and not genes.all():
        source, names = source.at_genes(np.flatnonzero(genes)), names[genes]
    check_finite(source, where, adata.obs_names, names)
    return CellMatrix(source, kind=kind_of(source.summary, stored_only=stored_only), normalised=normalised)


def _select(adata: AnnData, layer: str | None) -> object:
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
        msg = f"There is no layer {layer!r}. {near_matches(layer, adata.layers)}"
        raise KeyError(msg)
    return adata.layers[layer]


def _computable(array: np.ndarray) -> np.ndarray:
    """In the byte order of this machine, and of a precision that arithmetic has; a copy only where it is not so."""
    dtype = array.dtype.newbyteorder("=")
    return array.astype(np.float32 if dtype == np.float16 else dtype, copy=False)


def canonical(values: sp.spmatrix | sp.sparray) -> sp.csr_array:
    """Compressed by rows with sorted, unique indices; a copy only where the input is not so already."""
    # a wrapper of its own: scipy notes what it learns about the indices on the object
    compressed = sp.csc_array if values.format == "csc" else sp.csr_array
    parts = _computable(values.data), values.indices, values.indptr
    matrix = compressed(parts, shape=values.shape, copy=False).tocsr()
    if matrix.has_canonical_format:
        return matrix
    # a copy, wide enough for the sums
    matrix = matrix.astype(np.result_type(matrix.dtype, np.float32), copy=True)
    matrix.sum_duplicates()
    return matrix
