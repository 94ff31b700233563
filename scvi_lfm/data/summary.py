"""What one reading of values tells, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class Summary:
    """Figures of the values of a source, from one reading."""

    n_stored: int  # entries that the source holds: all of a dense one
    stored_minimum: float  # of those, exact in their dtype; not a number if one of them is none; 0 where there are none
    stored_maximum: float
    n_present: int  # entries other than zero
    n_whole: int  # those of them that are whole numbers
    cell_sums: np.ndarray  # (n,) float64
    empty_cells: np.ndarray  # (n,) bool: no value but zero
    empty_genes: np.ndarray  # (m,) bool

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return len(self.empty_cells), len(self.empty_genes)

    @property
    def all_stored(self) -> bool:
        """Whether no zero is left out."""
        return self.n_stored == len(self.empty_cells) * len(self.empty_genes)

    @property
    def minimum(self) -> float:
        """The smallest value, be it stored or a zero that is not."""
        return self.stored_minimum if self.all_stored else np.minimum(self.stored_minimum, 0).item()

    @property
    def maximum(self) -> float:
        """The largest value."""
        return self.stored_maximum if self.all_stored else np.maximum(self.stored_maximum, 0).item()

    @property
    def is_constant(self) -> bool:
        """Whether every value is the same."""
        return bool(self.minimum == self.maximum)

    @cached_property
    def total(self) -> float:
        """Sum of the values."""
        return float(self.cell_sums.sum())


def stored_values(block: sp.csr_array | np.ndarray) -> np.ndarray:
    """The values held in memory: all of a dense block, the stored ones of a sparse one."""
    return block if isinstance(block, np.ndarray) else block.data


def row_sums(block: sp.csr_array) -> np.ndarray:
    """Sum of the values of each cell of a sparse block, the same to the bit wherever the cell lies in it."""
    sums, of_row = np.zeros(block.shape[0]), np.flatnonzero(np.diff(block.indptr))
    if len(of_row):
        with np.errstate(all="ignore"):
            sums[of_row] = np.add.reduceat(block.data, block.indptr[of_row], dtype=np.float64)
    return sums


@dataclass(frozen=True)
class Part:
    """Part of a summary: figures of some cells."""

    cells: slice
    n_stored: int
    extremes: tuple[Any, Any] | None  # of stored values; None where there are none
    n_present: int
    n_whole: int
    sums: np.ndarray
    filled_cells: np.ndarray
    filled_genes: np.ndarray  # positions, those that are known left out, or a mask


class PartialSummary:
    """The parts of a summary, added up in any order."""

    def __init__(self, n_cells: int, n_genes: int) -> None:
        self._sums, self._of_cells = np.zeros(n_cells), np.zeros(n_cells, dtype=bool)
        # workers look up which genes are known to be filled already: most of them are, after a few cells
        self._of_genes = np.zeros(n_genes, dtype=bool)
        self._lows: list[Any] = []
        self._highs: list[Any] = []
        self._counts = np.zeros(3, dtype=np.int64)

    def part(self, cells: slice, block: sp.csr_array | np.ndarray) -> Part:
        """Part of the summary that some cells add."""
        return _part(cells, block, self._of_genes)

    def add(self, part: Part) -> None:
        """Add a part."""
        self._sums[part.cells], self._of_cells[part.cells] = part.sums, part.filled_cells
        self._of_genes[part.filled_genes] = True
        self._counts += (part.n_stored, part.n_present, part.n_whole)
        if part.extremes is not None:
            self._lows.append(part.extremes[0])
            self._highs.append(part.extremes[1])

    def summary(self) -> Summary:
        """Summary of all parts."""
        with np.errstate(all="ignore"):
            least, most = (np.min(self._lows).item(), np.max(self._highs).item()) if self._lows else (0, 0)
        n_stored, n_present, n_whole = self._counts.tolist()
        return Summary(n_stored, least, most, n_present, n_whole, self._sums, ~self._of_cells, ~self._of_genes)


def joined(found: list[Summary]) -> Summary:
    """The summary of all cells from those of some after others."""
    filled = [part for part in found if part.n_stored]
    with np.errstate(all="ignore"):
        least = np.min([part.stored_minimum for part in filled]).item() if filled else 0
        most = np.max([part.stored_maximum for part in filled]).item() if filled else 0
    n_stored, n_present, n_whole = (
        sum(getattr(part, name) for part in found) for name in ("n_stored", "n_present", "n_whole")
    )
    sums, of_cells = (np.concatenate([getattr(part, name) for part in found]) for name in ("cell_sums", "empty_cells"))
    of_genes = np.logical_and.reduce([part.empty_genes for part in found])
    return Summary(n_stored, least, most, n_present, n_whole, sums, of_cells, of_genes)


def _part(cells: slice, block: sp.csr_array | np.ndarray, known_genes: np.ndarray) -> Part:
    stored = stored_values(block)
    if stored.size == 0:
        nothing = np.zeros(block.shape[0])
        return Part(cells, 0, None, 0, 0, nothing, nothing.astype(bool), np.zeros(block.shape[1], dtype=bool))
    with np.errstate(all="ignore"):
        extremes = stored.min(), stored.max()
        present = None if extremes[0] > 0 else stored != 0  # None: all
        n = stored.size if present is None else int(np.count_nonzero(present))
        # zeros are whole too
        exact = stored.dtype.kind != "f"
        n_whole = n if exact else int(np.count_nonzero(stored == np.rint(stored))) - stored.size + n
        if isinstance(block, np.ndarray):
            of_cells, of_genes = (np.logical_or.reduce(block, axis) for axis in (1, 0))
            return Part(cells, stored.size, extremes, n, n_whole, block.sum(1, dtype=np.float64), of_cells, of_genes)
        sums, of_cells = row_sums(block), np.zeros(block.shape[0], dtype=bool)
        of_row = np.flatnonzero(np.diff(block.indptr))
        starts = block.indptr[of_row]
        of_cells[of_row] = True if present is None else np.logical_or.reduceat(present, starts)
        genes = block.indices if present is None else block.indices[present]
        of_genes = genes[~known_genes.take(genes)]
        return Part(cells, stored.size, extremes, n, n_whole, sums, of_cells, of_genes)
