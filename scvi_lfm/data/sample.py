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
        stored = matrix.stored()
        n_positive, positive = _draw_not_zero(stored, half, rng)
        cell, gene = rng.integers(n, size=half), rng.integers(m, size=half)
        zero = np.asarray(stored[cell, gene]).ravel() == 0
        if observed is not None:
            zero &= np.asarray(observed.pattern[cell, gene]).ravel() == 0
        sizes, share = (len(positive[0]), int(zero.sum())), n_positive / matrix.n_observed
        weight = np.repeat([part / max(size, 1) for part, size in zip((share, 1 - share), sizes, strict=True)], sizes)
        cell, gene, y = map(np.append, positive, (cell[zero], gene[zero], np.zeros(sizes[1])))
    return Sample(cell, gene, y.astype(np.float32), weight)


def _draw_not_zero(
    stored: sp.csr_array | np.ndarray, size: int, rng: np.random.Generator
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Number of entries that are not zero; cells, genes and values of some of them, at random."""
    if isinstance(stored, np.ndarray):
        row, col = stored.nonzero()
        some = rng.permutation(len(row))[:size]
        cell, gene = row[some], col[some]
        return len(row), (cell, gene, stored[cell, gene])
    on = np.flatnonzero(stored.data)
    at = on[rng.permutation(len(on))[:size]]
    cell = np.searchsorted(stored.indptr, at, side="right") - 1
    return len(on), (cell, stored.indices[at].astype(np.int64), stored.data[at])
