"""Random parts of a matrix to hold out: entries, molecules. Arrays in, arrays out; nothing is made dense."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .._memory import naming_memory


@naming_memory("hold out entries")
def draw_entries(
    values: sp.csr_array | np.ndarray, fraction: float, rng: np.random.Generator, *, stored: bool
) -> tuple[sp.csr_array, int]:
    """Mask of held-out entries, and for how many rows an entry was kept back so that they lose not all of them.

    `stored`: the fraction is of the stored entries. Otherwise it is of the entries that are not zero, and as many of
    the zeros are held out with them, but no more than the fraction of all zeros.
    """
    pattern = sp.csr_array(values) if stored else _without_zeros(values)
    n_rows, n_columns = pattern.shape
    drawn = np.zeros(pattern.nnz, dtype=bool)
    drawn[rng.choice(pattern.nnz, round(fraction * pattern.nnz), replace=False, shuffle=False)] = True
    kept = _keep_one(drawn, pattern.indptr, rng)
    row = np.repeat(np.arange(n_rows, dtype=np.int64), np.diff(pattern.indptr))
    positions = row * n_columns + pattern.indices
    held = positions[drawn]
    if not stored:
        n_zeros = n_rows * n_columns - pattern.nnz
        n_drawn = min(len(held), round(fraction * n_zeros))
        ranks = rng.choice(n_zeros, n_drawn, replace=False, shuffle=False) if n_drawn else np.empty(0, dtype=np.int64)
        held = np.concatenate([held, _nth_zeros(ranks, positions)])
    mask = sp.csr_array((np.ones(len(held), dtype=bool), np.divmod(held, n_columns)), shape=pattern.shape)
    mask.sort_indices()
    return mask, kept


@naming_memory("hold out molecules")
def thin_molecules(
    counts: sp.csr_array | np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[sp.csr_array, sp.csr_array, int]:
    """Counts that stay, counts that are held out, and in how many rows a molecule was kept back."""
    counts = _without_zeros(counts)
    whole = counts.data.astype(np.int64)
    held = rng.binomial(whole, fraction)
    kept = _keep_one_molecule(whole, held, counts.indptr, rng)
    parts = []
    for data in (whole - held, held):
        part = sp.csr_array((data.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1], kept


def _without_zeros(values: sp.csr_array | np.ndarray) -> sp.csr_array:
    if isinstance(values, np.ndarray):
        return sp.csr_array(values)
    if values.data.all():
        return values
    values = values.copy()
    values.eliminate_zeros()
    return values


def _keep_one(drawn: np.ndarray, indptr: np.ndarray, rng: np.random.Generator) -> int:
    """Take one entry back, at random, in each row of which all were drawn."""
    size = np.diff(indptr)
    lost = np.flatnonzero((size > 0) & (_row_sums(drawn, indptr) == size))
    drawn[indptr[lost] + rng.integers(0, size[lost])] = False
    return len(lost)


def _keep_one_molecule(whole: np.ndarray, held: np.ndarray, indptr: np.ndarray, rng: np.random.Generator) -> int:
    """Take one molecule back, at random, in each row of which all were drawn."""
    size = _row_sums(whole, indptr)
    lost = np.flatnonzero((size > 0) & (_row_sums(held, indptr) == size))
    before = np.concatenate([[0], np.cumsum(whole)])
    held[np.searchsorted(before, before[indptr[lost]] + rng.integers(0, size[lost]), side="right") - 1] -= 1
    return len(lost)


def _row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return before[indptr[1:]] - before[indptr[:-1]]


def _nth_zeros(ranks: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Flat positions of the zeros of these ranks, among all that are not in the sorted `positions`."""
    zeros_before = positions - np.arange(len(positions))
    return ranks + np.searchsorted(zeros_before, ranks, side="right")
