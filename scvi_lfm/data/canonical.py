"""The one form in which values are worked with: native floats or integers, compressed by rows or dense."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def computable(array: np.ndarray) -> np.ndarray:
    """In the byte order of this machine, and of a precision that arithmetic has; a copy only where it is not so."""
    return array.astype(computable_dtype(array.dtype), copy=False)


def computable_dtype(dtype: np.dtype) -> np.dtype:
    """The type that values of a type are worked with in."""
    native = np.dtype(dtype).newbyteorder("=")
    return np.dtype(np.float32) if native == np.float16 else native


def canonical(values: sp.spmatrix | sp.sparray) -> sp.csr_array:
    """Compressed by rows with sorted, unique indices; a copy only where the input is not so already."""
    # a wrapper of its own: scipy notes what it learns about the indices on the object
    compressed = sp.csc_array if values.format == "csc" else sp.csr_array
    parts = computable(values.data), values.indices, values.indptr
    matrix = compressed(parts, shape=values.shape, copy=False).tocsr()
    if matrix.has_canonical_format:
        return matrix
    # a copy, wide enough for the sums
    matrix = matrix.astype(np.result_type(matrix.dtype, np.float32), copy=True)
    matrix.sum_duplicates()
    return matrix
