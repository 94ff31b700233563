"""Values less what margins say of them, as they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .canonical import of_parts
from .wrapped import WrappedSource

if TYPE_CHECKING:
    import scipy.sparse as sp

    from .source import CellSource


@dataclass(frozen=True, eq=False)
class LessMargins(WrappedSource):
    """`y_ij - level - (a_i + b_j)` of what a sparse source stores, in float32; what is not stored stays so."""

    dtype = np.dtype(np.float32)
    is_sparse = True
    level: float
    of_cells: np.ndarray  # (n,) float64
    of_genes: np.ndarray  # (m,) float64

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> LessMargins:
        """The differences of some cells, whose values `leaf` has."""
        return replace(self, source=self.source.over(leaf, cells), of_cells=self.of_cells[cells])

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The differences of some cells."""
        block = self.source.rows(which)
        if isinstance(block, np.ndarray):
            msg = "values of a dense source are all data"
            raise TypeError(msg)
        cell = np.repeat(self.of_cells[which], np.diff(block.indptr))
        data = np.subtract(block.data, self.level, dtype=np.float64) if self.level else block.data
        data = data.astype(np.float32) - (cell + self.of_genes[block.indices]).astype(np.float32)
        return of_parts(type(block), block.shape, data, block.indices, block.indptr)

    def at_genes(self, genes: np.ndarray) -> LessMargins:
        """The columns of some genes, by position or mask."""
        return replace(self, source=self.source.at_genes(genes), of_genes=self.of_genes[genes])
