"""What any source of values answers, and what one reading of them tells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy.sparse as sp

from .._workers import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")

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
    def leaf(self) -> CellSource:
        """What the values are read from in the end, cell by cell."""
        return self

    @property
    def cluster(self) -> Any:
        """The :class:`~.cluster.Cluster` that works on the cells; None: they are worked on here."""
        return None if self.leaf is self else self.leaf.cluster

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> CellSource:
        """The same of some cells, whose values `leaf` has."""
        return leaf

    @property
    def values_per_cell(self) -> float:
        """About how many values are stored of a cell: how many cells are a part follows from it, and no result."""
        return self.n_stored / max(self.shape[0], 1)

    def whole(self) -> sp.csr_array | np.ndarray:
        """All values as one array in memory."""
        blocks = list(self.each_part(_itself))
        return stacked(blocks) if blocks else self.rows(slice(None))

    def parts(self, size: int | None = None) -> Iterator[tuple[slice, sp.csr_array | np.ndarray]]:
        """Every cell once, in order, a few at a time, or `size` of them: positions and values."""
        n_cells, step = self.shape[0], size or max(1, int(VALUES_PER_PART / max(self.values_per_cell, 1)))
        for start in range(0, n_cells, step):
            cells = slice(start, min(start + step, n_cells))
            yield cells, self.rows(cells)

    def each_part(
        self, function: Callable[[sp.csr_array | np.ndarray], Result], size: int | None = None
    ) -> Iterator[Result]:
        """`function` of the values of every cell once, in order, a few cells at a time, or `size` of them."""
        cluster = self.cluster
        if cluster is None:
            return (function(block) for _, block in self.parts(size))
        return chain.from_iterable(cluster.each_task(partial(_of_parts, function, size), self))

    @property
    def summary(self) -> Summary:
        """Figures of all values, read once. NaN and infinities show in the extremes."""
        # Python 3.11 locks a cached property of all sources together, and workers may be threads that ask for theirs
        found: Summary | None = vars(self).get("_summary")
        if found is None:
            cluster = self.cluster
            found = _summarise(self) if cluster is None else _joined(list(cluster.each_task(_summarise, self)))
            vars(self)["_summary"] = found
        return found

    def entries(self, cell: np.ndarray, gene: np.ndarray) -> np.ndarray:
        """The values at some positions, in any order."""
        order, cluster = np.argsort(cell, kind="stable"), self.cluster
        found = np.empty(len(cell), self.dtype)
        if cluster is not None:
            found[order] = cluster.entries(self, cell[order], gene[order])
            return found
        for cells, block in self.parts():
            first, last = np.searchsorted(cell, (cells.start, cells.stop), sorter=order)
            at = order[first:last]
            if len(at):
                found[at] = np.asarray(block[cell[at] - cells.start, gene[at]]).ravel()
        return found

    def pattern(self) -> sp.csr_array:
        """Ones at the entries that a sparse source stores."""
        return sp.vstack(list(self.each_part(_pattern)), format="csr")


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


def _summarise(source: CellSource) -> Summary:
    n_cells, n_genes = source.shape
    lows, highs, n_stored, n_present, n_whole = [], [], 0, 0, 0
    sums, of_cells = np.zeros(n_cells), np.zeros(n_cells, dtype=bool)
    of_genes = np.zeros(n_genes, dtype=bool)
    # workers look up which genes are known to be filled already: most of them are, after a few cells
    for part in in_order(lambda found: _part(*found, of_genes), source.parts()):
        sums[part.cells], of_cells[part.cells] = part.sums, part.filled_cells
        of_genes[part.filled_genes] = True
        n_stored += part.n_stored
        n_present, n_whole = n_present + part.n_present, n_whole + part.n_whole
        if part.extremes is not None:
            lows.append(part.extremes[0])
            highs.append(part.extremes[1])
    with np.errstate(all="ignore"):
        least, most = (np.min(lows).item(), np.max(highs).item()) if lows else (0, 0)
    return Summary(n_stored, least, most, n_present, n_whole, sums, ~of_cells, ~of_genes)


def _joined(found: list[Summary]) -> Summary:
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


def _of_parts(
    function: Callable[[sp.csr_array | np.ndarray], Result], size: int | None, source: CellSource
) -> list[Result]:
    return list(source.each_part(function, size))


def _itself(block: sp.csr_array | np.ndarray) -> sp.csr_array | np.ndarray:
    return block


def _pattern(block: sp.csr_array | np.ndarray) -> sp.csr_array:
    return ones_at(sp.csr_array(block))


def _part(cells: slice, block: sp.csr_array | np.ndarray, known_genes: np.ndarray) -> _Part:
    stored = stored_values(block)
    if stored.size == 0:
        nothing = np.zeros(block.shape[0])
        return _Part(cells, 0, None, 0, 0, nothing, nothing.astype(bool), np.zeros(block.shape[1], dtype=bool))
    with np.errstate(all="ignore"):
        extremes, present = (stored.min(), stored.max()), stored != 0
        n = int(np.count_nonzero(present))
        # zeros are whole too
        exact = stored.dtype.kind != "f"
        n_whole = n if exact else int(np.count_nonzero(stored == np.rint(stored))) - stored.size + n
        if isinstance(block, np.ndarray):
            sums = block.sum(1, dtype=np.float64)
            return _Part(cells, stored.size, extremes, n, n_whole, sums, present.any(1), present.any(0))
        sums, of_cells = np.zeros(block.shape[0]), np.zeros(block.shape[0], dtype=bool)
        filled = np.flatnonzero(np.diff(block.indptr))
        starts = block.indptr[filled]
        sums[filled] = np.add.reduceat(stored, starts, dtype=np.float64)
        of_cells[filled] = True if n == stored.size else np.logical_or.reduceat(present, starts)
        genes = block.indices if n == stored.size else block.indices[present]
        of_genes = genes[~known_genes[genes]]
        return _Part(cells, stored.size, extremes, n, n_whole, sums, of_cells, of_genes)
