"""Some entries of a block of cells at random, to stand for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
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
    else:
        half = min(size // 2, n * m)
        row, col = matrix.stored().nonzero()
        some = rng.permutation(len(row))[:half]
        cell, gene = rng.integers(n, size=half), rng.integers(m, size=half)
        zero = matrix.source.entries(cell, gene) == 0
        if observed is not None:
            zero &= np.asarray(observed.pattern[cell, gene]).ravel() == 0
        n_zero, share = int(zero.sum()), len(row) / matrix.n_observed
        weights = np.full(len(some), share / max(len(some), 1)), np.full(n_zero, (1 - share) / max(n_zero, 1))
        cell, gene, weight = np.append(row[some], cell[zero]), np.append(col[some], gene[zero]), np.append(*weights)
    return Sample(cell, gene, matrix.source.entries(cell, gene).astype(np.float32), weight)
