"""What sources share that make their values of those of another, as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .source import CellSource

if TYPE_CHECKING:
    import numpy as np


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
