"""Random parts of a matrix to hold out: entries, molecules. Cells are read a few at a time; nothing is made dense."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._memory import naming_memory
from .source import stacked

if TYPE_CHECKING:
    from .source import CellSource

# numpy draws from so many numbers with all of them in memory, unless it draws fewer than one in so many
MOST_IN_MEMORY, FEW = 2**25, 50


@naming_memory("hold out entries")
def draw_entries(
    source: CellSource, fraction: float, rng: np.random.Generator, *, stored: bool
) -> tuple[sp.csr_array, int]:
    """Mask of held-out entries, and for how many rows an entry was kept back so that they lose not all of them.

    `stored`: the fraction is of the stored entries. Otherwise it is of the entries that are not zero, and as many of
    the zeros are held out with them, but no more than the fraction of all zeros.
    """
    n_rows, n_columns = source.shape
    sizes = list(source.each_part(partial(_row_sizes, stored=stored)))
    ends = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
    drawn = choose(int(ends[-1]), round(fraction * int(ends[-1])), rng)
    drawn, kept = _keep_one(drawn, ends, rng)
    zeros = np.empty(0, dtype=np.int64)
    if not stored:
        n_zeros = n_rows * n_columns - int(ends[-1])
        zeros = choose(n_zeros, min(len(drawn), round(fraction * n_zeros)), rng)
    whole = _Drawn(ends, drawn, zeros, n_columns)
    return stacked(list(source.each_share(partial(_masks, stored=stored), whole.of_cells))), kept


@dataclass(frozen=True)
class _Drawn:
    """What was drawn of some cells: entries and zeros by their numbers among all of these."""

    ends: np.ndarray  # (cells + 1,): numbers of entries before each cell
    entries: np.ndarray  # increasing
    zeros: np.ndarray  # increasing
    n_columns: int

    def of_cells(self, cells: slice) -> _Drawn:
        """What was drawn of consecutive cells."""
        ends = self.ends[cells.start : cells.stop + 1]
        first, last = int(ends[0]), int(ends[-1])
        zeros = _between(self.zeros, cells.start * self.n_columns - first, cells.stop * self.n_columns - last)
        return _Drawn(ends - first, _between(self.entries, first, last), zeros, self.n_columns)


def _masks(source: CellSource, drawn: _Drawn, *, stored: bool) -> sp.csr_array:
    """True at the entries that were drawn of all cells of a source."""
    masks, start = [], 0
    for block in source.each_part(partial(_entries, stored=stored)):
        of_block = drawn.of_cells(slice(start, start + block.shape[0]))
        masks.append(_mask(block, of_block.entries, of_block.zeros))
        start += block.shape[0]
    return stacked(masks)


@naming_memory("hold out molecules")
def thin_molecules(
    source: CellSource, fraction: float, rng: np.random.Generator
) -> tuple[sp.csr_array, sp.csr_array, int]:
    """Counts that stay, counts that are held out, and in how many rows a molecule was kept back."""
    parts: tuple[list[sp.csr_array], list[sp.csr_array]] = ([], [])
    for counts in source.each_part(_without_zeros):
        whole = counts.data.astype(np.int64)
        held = rng.binomial(whole, fraction)
        for part, data in zip(parts, (whole - held, held), strict=True):
            block = sp.csr_array((data.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), counts.shape)
            block.eliminate_zeros()
            part.append(block)
    return _keep_one_molecule(stacked(parts[0]), stacked(parts[1]), rng)


def choose(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers below n, as many as are asked for, each as likely and at most once, in order."""
    if not count:
        return np.empty(0, dtype=np.int64)
    if n <= MOST_IN_MEMORY or count <= n // FEW:
        return np.sort(rng.choice(n, count, replace=False, shuffle=False))
    if 2 * count > n:
        left = np.ones(n, dtype=bool)
        left[choose(n, n - count, rng)] = False
        return np.flatnonzero(left)
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        # those that come first in a row of draws are any, as one is as likely as another
        more = rng.integers(n, size=int(1.1 * (count - len(found)) / (1 - len(found) / n)) + 10)
        found = np.concatenate([found, more])
        found = found[np.sort(np.unique(found, return_index=True)[1])][:count]
    return np.sort(found)


def _between(increasing: np.ndarray, first: int, last: int) -> np.ndarray:
    """Numbers from the first to before the last, counted from the first."""
    start, stop = np.searchsorted(increasing, (first, last))
    return increasing[start:stop] - first


def _entries(block: sp.csr_array | np.ndarray, *, stored: bool) -> sp.csr_array:
    return sp.csr_array(block) if stored else _without_zeros(block)


def _row_sizes(block: sp.csr_array | np.ndarray, *, stored: bool) -> np.ndarray:
    return np.diff(_entries(block, stored=stored).indptr)


def _without_zeros(values: sp.csr_array | np.ndarray) -> sp.csr_array:
    if isinstance(values, np.ndarray):
        return sp.csr_array(values)
    if values.data.all():
        return values
    values = values.copy()
    values.eliminate_zeros()
    return values


def _mask(pattern: sp.csr_array, drawn: np.ndarray, zeros: np.ndarray) -> sp.csr_array:
    """True at some of the entries of a pattern, and of the others, in order, that are not there."""
    n_rows, n_columns = pattern.shape
    row = np.searchsorted(pattern.indptr, drawn, side="right") - 1
    held = row.astype(np.int64) * n_columns + pattern.indices[drawn]
    if len(zeros):
        of_entry = np.repeat(np.arange(n_rows, dtype=np.int64), np.diff(pattern.indptr))
        held = np.sort(np.concatenate([held, _nth_zeros(zeros, of_entry * n_columns + pattern.indices)]))
    starts = np.searchsorted(held, np.arange(n_rows + 1, dtype=np.int64) * n_columns)
    return sp.csr_array((np.ones(len(held), dtype=bool), held % max(n_columns, 1), starts), shape=pattern.shape)


def _keep_one(drawn: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Take one entry back, at random, in each row of which all were drawn."""
    size = np.diff(ends)
    lost = np.flatnonzero((size > 0) & (np.diff(np.searchsorted(drawn, ends)) == size))
    taken = ends[lost] + rng.integers(0, size[lost])
    return np.delete(drawn, np.searchsorted(drawn, taken)), len(lost)


def _keep_one_molecule(
    train: sp.csr_array, held: sp.csr_array, rng: np.random.Generator
) -> tuple[sp.csr_array, sp.csr_array, int]:
    """Take one molecule back, at random, in each row of which all were drawn."""
    lost = np.flatnonzero((np.diff(train.indptr) == 0) & (np.diff(held.indptr) > 0))
    if not len(lost):
        return train, held, 0
    rows = held[lost]
    before = np.concatenate([[0], np.cumsum(rows.data, dtype=np.int64)])
    begins = before[rows.indptr[:-1]]
    at = np.searchsorted(before, begins + rng.integers(0, np.diff(before[rows.indptr])), side="right") - 1
    held.data[held.indptr[lost] + at - rows.indptr[:-1]] -= 1
    held.eliminate_zeros()
    one_each = sp.csr_array((np.ones(len(lost), dtype=np.float32), (lost, rows.indices[at])), shape=held.shape)
    return train + one_each, held, len(lost)


def _nth_zeros(ranks: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Flat positions of the zeros of these ranks, among all that are not in the sorted `positions`."""
    zeros_before = positions - np.arange(len(positions))
    return ranks + np.searchsorted(zeros_before, ranks, side="right")
