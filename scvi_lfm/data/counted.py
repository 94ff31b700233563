"""Some cells that are read alone, and a source that counts how often its cells are read."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .memory import MemorySource
from .wrapped import WrappedSource

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp

    from .source import CellSource


@dataclass(eq=False)
class Tally:
    """Number of cells that were read, those read again too."""

    n_cells: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, n_cells: int) -> None:
        """Count some more; several workers may read at a time."""
        with self._guard:
            self.n_cells += n_cells


@dataclass(frozen=True, eq=False)
class Counted(WrappedSource):
    """Another source, every reading of which is counted, those of parts of it too."""

    tally: Tally = field(default_factory=Tally)

    @property
    def leaf(self) -> CellSource:
        """The source itself: it is read here, and not by the workers of a cluster."""
        return self

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells."""
        found = self.source.rows(which)
        self.tally.add(found.shape[0])
        return found

    def at_genes(self, genes: np.ndarray) -> Counted:
        """The columns of some genes, counted together with the others."""
        return Counted(self.source.at_genes(genes), self.tally)

    def without(self, mask: sp.csr_array) -> Counted:
        """The source less the entries of a mask, counted together with the others."""
        return Counted(self.source.without(mask), self.tally)


@dataclass(eq=False)
class CellSample:
    """Cells that stand for all, with what it took to read them."""

    cells: np.ndarray  # positions, increasing
    tally: Tally = field(default_factory=Tally)  # of the readings since
    seconds: float = 0.0  # to read them once

    def take(self, source: CellSource) -> Counted:
        """Read the cells into memory."""
        begun = time.perf_counter()
        values = source.rows(self.cells)
        self.seconds = time.perf_counter() - begun
        return Counted(MemorySource(values), self.tally)
