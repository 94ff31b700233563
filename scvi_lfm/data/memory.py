"""A source whose values are in memory already, as the AnnData holds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .canonical import canonical, of_parts
from .source import CellSource, ones_at


@dataclass(frozen=True, eq=False)
class MemorySource(CellSource):
    """An array: compressed by rows, or dense, in the dtype that the AnnData holds."""

    place = "memory"
    knows_n_stored = True
    values: sp.csr_array | np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.values.dtype

    @property
    def is_sparse(self) -> bool:
        """Whether zeros may be left out."""
        return not isinstance(self.values, np.ndarray)

    @property
    def n_stored(self) -> int:
        """Number of entries that are stored."""
        return self.values.size if isinstance(self.values, np.ndarray) else self.values.nnz

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells; consecutive ones are no copy."""
        return take(self.values, which)

    def whole(self) -> sp.csr_array | np.ndarray:
        """Array of all values: no copy."""
        return self.values

    def at_genes(self, genes: np.ndarray) -> MemorySource:
        """The columns of some genes, by position or mask."""
        return MemorySource(columns(self.values, genes))

    def without(self, mask: sp.csr_array) -> MemorySource:
        """A copy less the entries of a mask."""
        return MemorySource(without_entries(self.values, mask))

    def pattern(self) -> sp.csr_array:
        """Ones at the entries that are stored; indices are shared."""
        return ones_at(sp.csr_array(self.values))


def take(values: sp.csr_array | np.ndarray, rows: np.ndarray | slice) -> sp.csr_array | np.ndarray:
    """Rows of an array, by position."""
    if isinstance(values, np.ndarray) or isinstance(rows, np.ndarray):
        return values[rows]
    # consecutive rows are a part of the same arrays: no copy
    start, stop, _ = rows.indices(values.shape[0])
    first, last = values.indptr[start], values.indptr[stop]
    shape = max(stop - start, 0), values.shape[1]
    starts = values.indptr[start : stop + 1] - first
    return of_parts(type(values), shape, values.data[first:last], values.indices[first:last], starts)


def without_entries(block: sp.csr_array | np.ndarray, mask: sp.csr_array) -> sp.csr_array | np.ndarray:
    """A copy of a block less the entries of a mask: not stored, or zero in a dense one."""
    if isinstance(block, np.ndarray):
        kept = block.copy()
        kept[mask.nonzero()] = 0
        return kept
    return select(block, ~is_among(block, mask))


def columns(block: sp.csr_array | np.ndarray, genes: np.ndarray) -> sp.csr_array | np.ndarray:
    """Columns of a block, by position."""
    part = block[:, genes]
    return part if isinstance(part, np.ndarray) else canonical(part)


def is_among(entries: sp.csr_array, others: sp.csr_array) -> np.ndarray:
    """Whether each stored entry of a matrix is stored in another, in order."""
    return np.isin(_positions(entries), _positions(others), assume_unique=True)


def select(matrix: sp.csr_array, kept: np.ndarray) -> sp.csr_array:
    """A matrix with some of its stored entries alone."""
    starts = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)


def _positions(matrix: sp.csr_array) -> np.ndarray:
    """Place of each stored entry in the flattened matrix, increasing."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows * matrix.shape[1] + matrix.indices
