"""Some entries of a block of cells at random, to stand for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp

    from .matrix import CellMatrix


@dataclass(frozen=True)
class Sample:
    """Entries that are data, each with the share of all of them that it stands for."""

    cell: np.ndarray  # (s,): position
    gene: np.ndarray  # (s,): position
    y: np.ndarray  # (s,): value, float32
    weight: np.ndarray  # (s,): sums to 1


def draw_sample(matrix: CellMatrix, size: int, rng: np.random.Generator) -> Sample:
    """Draw from the cells of `matrix`, all of which are read: half from what is not zero, half from the zeros.

    Where only stored entries are data, all are drawn from these.
    """
    (n, m), observed = matrix.shape, matrix.observed
    if observed is not None and observed.only:
        pattern = observed.pattern
        at = np.sort(rng.permutation(pattern.nnz)[:size])
        cell, gene = np.searchsorted(pattern.indptr, at, side="right") - 1, pattern.indices[at]
        weight = np.full(len(at), 1 / max(len(at), 1))
        y = matrix.source.entries(cell, gene)
    else:
        half = min(size // 2, n * m)
        row, col, values = _not_zero(matrix.stored())
        some = rng.permutation(len(row))[:half]
        cell, gene = rng.integers(n, size=half), rng.integers(m, size=half)
        zero = ~_among(cell * m + gene, row * m + col)
        if observed is not None:
            zero &= np.asarray(observed.pattern[cell, gene]).ravel() == 0
        n_zero, share = int(zero.sum()), len(row) / matrix.n_observed
        weights = np.full(len(some), share / max(len(some), 1)), np.full(n_zero, (1 - share) / max(n_zero, 1))
        cell, gene, weight = np.append(row[some], cell[zero]), np.append(col[some], gene[zero]), np.append(*weights)
        y = np.append(values[some], np.zeros(n_zero))
    return Sample(cell, gene, y.astype(np.float32), weight)


def _not_zero(stored: sp.csr_array | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, genes and values of the entries that are not zero, row by row."""
    if isinstance(stored, np.ndarray):
        row, col = stored.nonzero()
        return row, col, stored[row, col]
    entries = stored.tocoo()
    on = entries.data != 0
    return entries.row[on].astype(np.int64), entries.col[on].astype(np.int64), entries.data[on]


def _among(some: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which of some places are among others: a search in these, in which far more would be looked through."""
    places = np.sort(places, kind="stable")
    at = np.searchsorted(places, some)
    return (at < len(places)) & (np.append(places, -1)[at] == some)
