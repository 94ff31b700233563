"""A part of another source: some cells, some genes, or all but some entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from .canonical import canonical
from .memory import columns, take, without_entries
from .wrapped import WrappedSource

if TYPE_CHECKING:
    import scipy.sparse as sp

    from .source import CellSource


@dataclass(frozen=True, eq=False)
class Selected(WrappedSource):
    """Some cells and genes of a source, by position, taken as they are read."""

    cells: np.ndarray | None = None  # None: all, in order
    genes: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        n_cells, n_genes = self.source.shape
        return (
            n_cells if self.cells is None else len(self.cells),
            n_genes if self.genes is None else len(self.genes),
        )

    @property
    def n_stored(self) -> int:
        """Number of entries that are stored."""
        return self.summary.n_stored

    @property
    def leaf(self) -> CellSource:
        """Source that the whole one is read from, unless cells are others."""
        return self.source.leaf if self.cells is None else self

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells, by position."""
        block = self.source.rows(which if self.cells is None else self.cells[which])
        return block if self.genes is None else columns(block, self.genes)

    def at_genes(self, genes: np.ndarray) -> Selected:
        """The columns of some genes, by position or mask."""
        own = np.arange(self.source.shape[1]) if self.genes is None else self.genes
        return Selected(self.source, self.cells, own[genes])

    def without(self, mask: sp.csr_array) -> Without:
        """The part less the entries of a mask."""
        return Without(self, mask)


@dataclass(frozen=True, eq=False)
class Without(WrappedSource):
    """A source less the entries of a mask, taken out as they are read: not stored, or zero in a dense source."""

    mask: sp.csr_array  # (n, m)

    @property
    def n_stored(self) -> int:
        """Number of entries that are stored."""
        return self.summary.n_stored

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> Without:
        """The source less the entries of a mask, of some cells, whose values `leaf` has."""
        return Without(self.source.over(leaf, cells), cast("sp.csr_array", take(self.mask, cells)))

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells, by position."""
        return without_entries(self.source.rows(which), cast("sp.csr_array", take(self.mask, which)))

    def at_genes(self, genes: np.ndarray) -> Without:
        """The columns of some genes, by position or mask."""
        return Without(self.source.at_genes(genes), canonical(self.mask[:, genes]))

    def without(self, mask: sp.csr_array) -> Without:
        """The source less the entries of another mask too."""
        return Without(self, mask)
