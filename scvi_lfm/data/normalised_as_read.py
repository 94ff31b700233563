"""Counts elsewhere that are log-normalised, and judged, while a fit reads them: no reading goes before it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from .level import MOST_ZEROS
from .normalised import factors_of, logs_of
from .selected import Selected, Without
from .summary import PartialSummary, Summary, row_sums, stored_values
from .wrapped import WrappedSource

if TYPE_CHECKING:
    import scipy.sparse as sp

    from .source import CellSource
    from .stored import Stored


class UnfitValuesError(ValueError):
    """Values that cannot be normalised were come upon; which, another reading tells."""


class _Notes:
    """Figures of counts and of their logarithms, taken of each cell when it is first read among its neighbours."""

    def __init__(self, n_cells: int, n_genes: int) -> None:
        self.counts, self.logs = PartialSummary(n_cells, n_genes), PartialSummary(n_cells, n_genes)
        self._seen, self._guard = np.zeros(n_cells, dtype=bool), threading.Lock()

    @property
    def are_whole(self) -> bool:
        """Whether every cell was seen."""
        return bool(self._seen.all())

    def take(self, cells: slice, counts: sp.csr_array, logs: sp.csr_array) -> None:
        """Take the figures of some cells, once."""
        if self._seen[cells].any():
            return
        parts = self.counts.part(cells, counts), self.logs.part(cells, logs)
        with self._guard:
            if not self._seen[cells].any():
                self.counts.add(parts[0])
                self.logs.add(parts[1])
                self._seen[cells] = True


@dataclass(frozen=True, eq=False)
class NormalisedAsRead(WrappedSource):
    """`log1p(target / n_i y_ij)` of sparse counts, with the total n_i of each cell taken from what is read of it.

    The same to the bit as :class:`~.normalised.LogNormalised`, which is told the totals.
    """

    dtype = np.dtype(np.float32)
    knows_n_stored = True
    target: float
    notes: _Notes
    stored: Stored

    @classmethod
    def of(cls, counts: CellSource, target: float, stored: Stored) -> NormalisedAsRead:
        """Counts of which nothing is known yet but about how many are stored."""
        return cls(counts, target, _Notes(*counts.shape), stored)

    @property
    def stored_about(self) -> float:
        """Number of entries that are stored, about."""
        return self.stored.about

    def rows(self, which: slice | np.ndarray) -> sp.csr_array:
        """The logarithms of some cells.

        Raises
        ------
        UnfitValuesError
            A count is negative, or is none.
        """
        counts = cast("sp.csr_array", self.source.rows(which))
        stored = stored_values(counts)
        if stored.size and not (stored.min() >= 0 and stored.max() <= np.finfo(np.float32).max):
            raise UnfitValuesError
        logs = cast("sp.csr_array", logs_of(counts, factors_of(self.target, row_sums(counts))))
        if isinstance(which, slice):
            self.notes.take(which, counts, logs)
        return logs

    def summaries(self) -> tuple[Summary, Summary] | None:
        """Figures of the counts and of the logarithms; None before every cell was noted."""
        notes = self.notes
        return (notes.counts.summary(), notes.logs.summary()) if notes.are_whole else None

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> NormalisedAsRead:
        """The logarithms of some cells, whose counts `leaf` has."""
        return NormalisedAsRead.of(self.source.over(leaf, cells), self.target, self.stored)

    def at_genes(self, genes: np.ndarray) -> Selected:
        """The columns of some genes; totals stay those over all."""
        return Selected(self, genes=np.arange(self.shape[1])[genes])

    def without(self, mask: sp.csr_array) -> Without:
        """The logarithms less the entries of a mask; totals stay those of all."""
        return Without(self, mask)


def can_be_judged_later(counts: CellSource, most_stored: float) -> bool:
    """Whether no choice of a fit of logarithms hangs on figures of all of them.

    That is so of sparse values which are not in memory, and read here, where a reading costs as much as a fit computes.
    Of these no more than `most_stored` may be stored: with so many zeros they share no level.
    """
    if counts.place == "memory" or not counts.is_sparse or counts.cluster is not None:
        return False
    n_cells, n_genes = counts.shape
    return bool(most_stored < (1 - MOST_ZEROS) * n_cells * n_genes)
