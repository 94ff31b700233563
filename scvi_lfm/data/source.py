"""What any source of values answers, and what one reading of them tells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy.sparse as sp

from .._workers import in_order
from .summary import Part, PartialSummary, Summary, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[[slice, sp.csr_array | np.ndarray, np.ndarray], sp.csr_array | np.ndarray]

Result = TypeVar("Result")

# parts stay in a processor's cache, so that several questions cost one reading
VALUES_PER_PART = 2**17


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
    def n_stored(self) -> int:
        """Number of entries that are stored: of a sparse source, known when all values were read once."""
        return self.summary.n_stored if self.is_sparse else self.shape[0] * self.shape[1]

    @abstractmethod
    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells, by position, in memory; not to be written to."""

    @abstractmethod
    def at_genes(self, genes: np.ndarray) -> CellSource:
        """The columns of some genes, by position or mask."""

    @abstractmethod
    def without(self, mask: sp.csr_array) -> CellSource:
        """The source less the entries of a mask (n, m): they are not stored, or zero in a dense source."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Place of the values: `"memory"`, `"file"` or `"dask"`."""

    @property
    def knows_n_stored(self) -> bool:
        """Whether the number of stored entries is known without a reading."""
        return not self.is_sparse

    @property
    def stored_about(self) -> float:
        """Number of entries that are stored, about where only a reading of all tells."""
        return self.n_stored

    @property
    def leaf(self) -> CellSource:
        """Source that the values are read from in the end, cell by cell."""
        return self

    @property
    def cluster(self) -> Any:
        """The :class:`~.cluster.Cluster` that works on the cells; None: they are worked on here."""
        return None if self.leaf is self else self.leaf.cluster

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> CellSource:
        """The source of some cells, whose values `leaf` has."""
        return leaf

    @property
    def values_per_cell(self) -> float:
        """Number of values stored of a cell, about: how many cells are a part follows from it, and no result."""
        return self.n_stored / max(self.shape[0], 1)

    def whole(self) -> sp.csr_array | np.ndarray:
        """Array of all values in memory."""
        blocks = list(self.each_part(lambda block: block))
        return stacked(blocks) if blocks else self.rows(slice(None))

    def parts(self, size: int | None = None) -> Iterator[tuple[slice, sp.csr_array | np.ndarray]]:
        """Positions and values of every cell once, in order, a few cells at a time, or `size` of them."""
        return ((cells, self.rows(cells)) for cells in self._slices(size))

    def _slices(self, size: int | None = None) -> Iterator[slice]:
        n_cells, step = self.shape[0], size or max(1, int(VALUES_PER_PART / max(self.values_per_cell, 1)))
        return (slice(start, min(start + step, n_cells)) for start in range(0, n_cells, step))

    def each_part(
        self, function: Callable[[sp.csr_array | np.ndarray], Result], size: int | None = None
    ) -> Iterator[Result]:
        """Results of `function` for the values of all cells, in order, a few cells at a time, or `size` of them."""
        cluster = self.cluster
        if cluster is None:
            return (function(block) for _, block in self.parts(size))
        return chain.from_iterable(cluster.each_task(partial(_of_parts, function, size), self))

    def each_share(
        self, function: Callable[[CellSource, Any], Result], of_cells: Callable[[slice], Any]
    ) -> Iterator[Result]:
        """Results of `function` for all cells, or for those of each task of a cluster, in order.

        It is given a source of the cells, and what `of_cells` tells of them.
        """
        cluster = self.cluster
        if cluster is None:
            return iter([function(self, of_cells(slice(0, self.shape[0])))])
        return cluster.each_task(function, self, of_cells)

    @property
    def summary(self) -> Summary:
        """Figures of all values, read once. NaN and infinities show in the extremes."""
        # Python 3.11 locks a cached property of all sources together, and workers may be threads that ask for theirs
        found: Summary | None = vars(self).get("_summary")
        if found is None:
            cluster = self.cluster
            found = _summary_of(self) if cluster is None else joined(list(cluster.each_task(_summary_of, self)))
            self.is_known(found)
        return found

    def is_known(self, summary: Summary) -> None:
        """Keep the figures of all values, which somebody else has read."""
        vars(self)["_summary"] = summary

    def summarise_with(self, make: Make, n_genes: int) -> Summary | None:
        """Figures of what is made of the values, and :attr:`summary`, both from one reading.

        `make` is given the positions of some cells, their values and the sums of these, and returns `n_genes` columns.
        None where the values are read by the workers of a cluster, which know the sums of their own cells alone.
        """
        if self.cluster is not None:
            return None
        own, made = self._summarise(make, n_genes)
        self.is_known(own)
        return made

    def _summarise(self, make: Make | None, n_made: int) -> tuple[Summary, Summary]:
        n_cells, n_genes = self.shape
        own, made = PartialSummary(n_cells, n_genes), PartialSummary(n_cells, n_made)

        def parts(cells: slice) -> tuple[Part, Part | None]:
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
        return sp.vstack(list(self.each_part(lambda block: ones_at(sp.csr_array(block)))), format="csr")


def stacked(blocks: list[sp.csr_array | np.ndarray]) -> sp.csr_array | np.ndarray:
    """Blocks of cells one below the other."""
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if isinstance(blocks[0], np.ndarray) else sp.vstack(blocks, format="csr")


def ones_at(block: sp.csr_array) -> sp.csr_array:
    """Ones where entries are stored; indices are shared."""
    ones = np.ones(block.nnz, dtype=np.float32)
    return sp.csr_array((ones, block.indices, block.indptr), shape=block.shape, copy=False)


def _summary_of(source: CellSource) -> Summary:
    return source._summarise(None, 0)[0]


def _of_parts(
    function: Callable[[sp.csr_array | np.ndarray], Result], size: int | None, source: CellSource
) -> list[Result]:
    return list(source.each_part(function, size))
