"""The one form in which values are worked with: native floats or integers, compressed by rows or dense."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import scipy.sparse as sp

Compressed = TypeVar("Compressed", sp.csr_array, sp.csc_array)


def computable(array: np.ndarray) -> np.ndarray:
    """Values in this machine's byte order, of a precision that arithmetic has; a copy only where they are not so."""
    return array.astype(computable_dtype(array.dtype), copy=False)


def computable_dtype(dtype: np.dtype) -> np.dtype:
    """The type that values of a type are worked with in."""
    native = np.dtype(dtype).newbyteorder("=")
    return np.dtype(np.float32) if native == np.float16 else native


def canonical(values: sp.spmatrix | sp.sparray) -> sp.csr_array:
    """Matrix compressed by rows with sorted, unique indices; a copy only where the input is not so already."""
    # a wrapper of its own: scipy notes what it learns about the indices on the object
    compressed = sp.csc_array if values.format == "csc" else sp.csr_array
    parts = computable(values.data), values.indices, values.indptr
    return in_order_of_genes(compressed(parts, shape=values.shape, copy=False).tocsr())


def in_order_of_genes(matrix: sp.csr_array) -> sp.csr_array:
    """Matrix with sorted, unique indices; a copy only where it has others."""
    if matrix.has_canonical_format:
        return matrix
    # a copy, wide enough for the sums
    matrix = matrix.astype(np.result_type(matrix.dtype, np.float32), copy=True)
    matrix.sum_duplicates()
    return matrix


def of_parts(
    kind: type[Compressed], shape: tuple[int, int], data: np.ndarray, indices: np.ndarray, indptr: np.ndarray
) -> Compressed:
    """A compressed array of arrays that are not copied: the constructor copies what is a small part of a larger one."""
    array = kind(shape, dtype=data.dtype)
    array.data, array.indices, array.indptr = data, indices, indptr
    return array
