"""Some cells that are read alone, and a source that counts how often its cells are read."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .memory import MemorySource
from .source import CellSource

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp


@dataclass(eq=False)
class Tally:
    """How many cells were read, those read again too."""

    n_cells: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, n_cells: int) -> None:
        """Count some more; several workers may read at a time."""
        with self._guard:
            self.n_cells += n_cells


@dataclass(frozen=True, eq=False)
class Counted(CellSource):
    """Another source, every reading of which is counted, those of parts of it too."""

    source: CellSource
    tally: Tally = field(default_factory=Tally)

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
    def values_per_cell(self) -> float:
        """As many as the source says."""
        return self.source.values_per_cell

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells."""
        found = self.source.rows(which)
        self.tally.add(found.shape[0])
        return found

    def at_genes(self, genes: np.ndarray) -> Counted:
        """The columns of some genes, counted together with the others."""
        return Counted(self.source.at_genes(genes), self.tally)

    def without(self, mask: sp.csr_array) -> Counted:
        """The same less the entries of a mask."""
        return Counted(self.source.without(mask), self.tally)


@dataclass(eq=False)
class Sample:
    """Some cells that stand for all, with what it took to read them."""

    cells: np.ndarray  # positions, increasing
    tally: Tally = field(default_factory=Tally)  # of the readings since
    seconds: float = 0.0  # to read them once

    def take(self, source: CellSource) -> Counted:
        """Read them into memory."""
        begun = time.perf_counter()
        values = source.rows(self.cells)
        self.seconds = time.perf_counter() - begun
        return Counted(MemorySource(values), self.tally)
