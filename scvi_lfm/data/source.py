"""What any source of values answers, and what one reading of them tells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._workers import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[[slice, sp.csr_array | np.ndarray, np.ndarray], sp.csr_array | np.ndarray]

# parts stay in a processor's cache, so that several questions cost one reading
VALUES_PER_PART = 2**17


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


class CellSource(ABC):
    """Values of cells by genes, wherever they lie, read some cells at a time; what is not stored is zero."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """Type of the values."""

    @property
    @abstractmethod
    def is_sparse(self) -> bool:
        """Whether zeros may be left out; blocks are then compressed by rows, with sorted, unique indices."""

    @property
    @abstractmethod
    def n_stored(self) -> int:
        """Number of entries that are stored."""

    @abstractmethod
    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells, by position, in memory; not to be written to."""

    @abstractmethod
    def at_genes(self, genes: np.ndarray) -> CellSource:
        """The columns of some genes, by position or mask."""

    @abstractmethod
    def without(self, mask: sp.csr_array) -> CellSource:
        """The same less the entries of a mask (n, m): they are not stored, or zero in a dense source."""

    @property
    def values_per_cell(self) -> float:
        """About how many values are stored of a cell: how many cells are a part follows from it, and no result."""
        return self.n_stored / max(self.shape[0], 1)

    def whole(self) -> sp.csr_array | np.ndarray:
        """All values as one array in memory."""
        blocks = [block for _, block in self.parts()]
        return stacked(blocks) if blocks else self.rows(slice(None))

    def parts(self, size: int | None = None) -> Iterator[tuple[slice, sp.csr_array | np.ndarray]]:
        """Every cell once, in order, a few at a time, or `size` of them: positions and values."""
        return ((cells, self.rows(cells)) for cells in self._slices(size))

    def _slices(self, size: int | None = None) -> Iterator[slice]:
        n_cells, step = self.shape[0], size or max(1, int(VALUES_PER_PART / max(self.values_per_cell, 1)))
        return (slice(start, min(start + step, n_cells)) for start in range(0, n_cells, step))

    @cached_property
    def summary(self) -> Summary:
        """Figures of all values, read once. NaN and infinities show in the extremes."""
        return self._summarise(None, 0)[0]

    def summarise_with(self, make: Make, n_genes: int) -> Summary:
        """Figures of what is made of the values, and :attr:`summary`, both from one reading.

        `make` is given the positions of some cells, their values and the sums of these, and returns `n_genes` columns.
        """
        vars(self)["summary"], made = self._summarise(make, n_genes)
        return made

    def _summarise(self, make: Make | None, n_made: int) -> tuple[Summary, Summary]:
        n_cells, n_genes = self.shape
        own, made = _Tally(n_cells, n_genes), _Tally(n_cells, n_made)

        def parts(cells: slice) -> tuple[_Part, _Part | None]:
            block = self.rows(cells)
            part = own.part(cells, block)
            return part, None if make is None else made.part(cells, make(cells, block, part.sums))

        for part, of_made in in_order(parts, self._slices()):
            own.add(part)
            if of_made is not None:
                made.add(of_made)
        return own.summary(), made.summary()

    def entries(self, cell: np.ndarray, gene: np.ndarray) -> np.ndarray:
        """The values at some positions, in any order."""
        order = np.argsort(cell, kind="stable")
        found = np.empty(len(cell), self.dtype)
        for cells, block in self.parts():
            first, last = np.searchsorted(cell, (cells.start, cells.stop), sorter=order)
            at = order[first:last]
            if len(at):
                found[at] = np.asarray(block[cell[at] - cells.start, gene[at]]).ravel()
        return found

    def pattern(self) -> sp.csr_array:
        """Ones at the entries that a sparse source stores."""
        return sp.vstack([ones_at(sp.csr_array(block)) for _, block in self.parts()], format="csr")


def stored_values(block: sp.csr_array | np.ndarray) -> np.ndarray:
    """The values held in memory: all of a dense block, the stored ones of a sparse one."""
    return block if isinstance(block, np.ndarray) else block.data


def stacked(blocks: list[sp.csr_array | np.ndarray]) -> sp.csr_array | np.ndarray:
    """Blocks of cells one below the other."""
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if isinstance(blocks[0], np.ndarray) else sp.vstack(blocks, format="csr")


def ones_at(block: sp.csr_array) -> sp.csr_array:
    """Ones where entries are stored; indices are shared."""
    ones = np.ones(block.nnz, dtype=np.float32)
    return sp.csr_array((ones, block.indices, block.indptr), shape=block.shape, copy=False)


@dataclass(frozen=True)
class _Part:
    """What some cells add to a summary."""

    cells: slice
    n_stored: int
    extremes: tuple[Any, Any] | None  # of stored values; None where there are none
    n_present: int
    n_whole: int
    sums: np.ndarray
    filled_cells: np.ndarray
    filled_genes: np.ndarray  # positions, those that are known left out, or a mask


class _Tally:
    """The parts of a summary, added up in any order."""

    def __init__(self, n_cells: int, n_genes: int) -> None:
        self._sums, self._of_cells = np.zeros(n_cells), np.zeros(n_cells, dtype=bool)
        # workers look up which genes are known to be filled already: most of them are, after a few cells
        self._of_genes = np.zeros(n_genes, dtype=bool)
        self._lows: list[Any] = []
        self._highs: list[Any] = []
        self._counts = np.zeros(3, dtype=np.int64)

    def part(self, cells: slice, block: sp.csr_array | np.ndarray) -> _Part:
        """What some cells add."""
        return _part(cells, block, self._of_genes)

    def add(self, part: _Part) -> None:
        """Add it."""
        self._sums[part.cells], self._of_cells[part.cells] = part.sums, part.filled_cells
        self._of_genes[part.filled_genes] = True
        self._counts += (part.n_stored, part.n_present, part.n_whole)
        if part.extremes is not None:
            self._lows.append(part.extremes[0])
            self._highs.append(part.extremes[1])

    def summary(self) -> Summary:
        """All of them."""
        with np.errstate(all="ignore"):
            least, most = (np.min(self._lows).item(), np.max(self._highs).item()) if self._lows else (0, 0)
        n_stored, n_present, n_whole = self._counts.tolist()
        return Summary(n_stored, least, most, n_present, n_whole, self._sums, ~self._of_cells, ~self._of_genes)


def _part(cells: slice, block: sp.csr_array | np.ndarray, known_genes: np.ndarray) -> _Part:
    stored = stored_values(block)
    if stored.size == 0:
        nothing = np.zeros(block.shape[0])
        return _Part(cells, 0, None, 0, 0, nothing, nothing.astype(bool), np.zeros(block.shape[1], dtype=bool))
    with np.errstate(all="ignore"):
        extremes = stored.min(), stored.max()
        present = None if extremes[0] > 0 else stored != 0  # None: all
        n = stored.size if present is None else int(np.count_nonzero(present))
        # zeros are whole too
        exact = stored.dtype.kind != "f"
        n_whole = n if exact else int(np.count_nonzero(stored == np.rint(stored))) - stored.size + n
        if isinstance(block, np.ndarray):
            of_cells, of_genes = (np.logical_or.reduce(block, axis) for axis in (1, 0))
            return _Part(cells, stored.size, extremes, n, n_whole, block.sum(1, dtype=np.float64), of_cells, of_genes)
        sums, of_cells = np.zeros(block.shape[0]), np.zeros(block.shape[0], dtype=bool)
        of_row = np.flatnonzero(np.diff(block.indptr))
        starts = block.indptr[of_row]
        sums[of_row] = np.add.reduceat(stored, starts, dtype=np.float64)
        of_cells[of_row] = True if present is None else np.logical_or.reduceat(present, starts)
        genes = block.indices if present is None else block.indices[present]
        of_genes = genes[~known_genes.take(genes)]
        return _Part(cells, stored.size, extremes, n, n_whole, sums, of_cells, of_genes)
