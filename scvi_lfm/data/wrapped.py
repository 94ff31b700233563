"""What sources share that make their values of those of another, as they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .source import CellSource

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class WrappedSource(CellSource):
    """Source that answers as another one, whatever is not said otherwise."""

    source: CellSource

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.source.dtype

    @property
    def is_sparse(self) -> bool:
        """Whether zeros may be left out."""
        return self.source.is_sparse

    @property
    def n_stored(self) -> int:
        """Number of entries that are stored."""
        return self.source.n_stored

    @property
    def place(self) -> str:
        """Place of the values of the other source."""
        return self.source.place

    @property
    def leaf(self) -> CellSource:
        """Source that the other one is read from in the end."""
        return self.source.leaf

    @property
    def values_per_cell(self) -> float:
        """Number of values that the other source stores of a cell, about."""
        return self.source.values_per_cell

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> CellSource:
        """Source made of some cells alone, whose values `leaf` has."""
        return replace(self, source=self.source.over(leaf, cells))

    def at_genes(self, genes: np.ndarray) -> CellSource:
        """Source made of the columns of some genes, by position or mask."""
        return replace(self, source=self.source.at_genes(genes))

    def without(self, mask: sp.csr_array) -> CellSource:
        """Source made of the other one less the entries of a mask."""
        return replace(self, source=self.source.without(mask))
