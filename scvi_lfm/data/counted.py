"""Some cells that are read alone, and a source that counts how often its cells are read."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._workers import work_clock
from .memory import MemorySource
from .wrapped import WrappedSource

try:
    import resource
except ImportError:  # none on Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp

    from .source import CellSource


# that a device reads at the least
BYTES_PER_SECOND = 1e8


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


@dataclass(eq=False)
class CellSample:
    """Cells that stand for all, with what it took to read them."""

    cells: np.ndarray  # positions, increasing
    tally: Tally = field(default_factory=Tally)  # of the readings since
    work: float = 0.0  # seconds of work to read them once
    seconds: float = 0.0  # those that it takes; more where a device is waited for

    def take(self, source: CellSource) -> Counted:
        """Read the cells into memory."""
        work, passed, n_bytes = work_clock(), time.perf_counter(), device_bytes()
        values = source.rows(self.cells)
        self.work, passed = work_clock() - work, time.perf_counter() - passed
        # the rest of the time that passed may be other programs'
        waited = (device_bytes() - n_bytes) / BYTES_PER_SECOND
        self.seconds = self.work + min(waited, max(passed - self.work, 0.0))
        return Counted(MemorySource(values), self.tally)


def device_bytes() -> float:
    """Bytes that devices have read for this process so far; 0 where no system tells."""
    return 0.0 if resource is None else 512.0 * resource.getrusage(resource.RUSAGE_SELF).ru_inblock
