"""Which entries are data, and which of those are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from .memory import take

if TYPE_CHECKING:
    import scipy.sparse as sp


@dataclass(frozen=True)
class Observed:
    """Pattern of the entries that are data: those of a matrix, or all but those of a matrix."""

    pattern: sp.csr_array  # (n, m): ones
    only: bool  # whether the pattern's entries alone are data

    def rows(self, rows: np.ndarray | slice, dtype: np.dtype | type) -> Observed:
        """Pattern of some cells."""
        return Observed(cast("sp.csr_array", take(self.pattern, rows)).astype(dtype, copy=False), self.only)


@dataclass(frozen=True)
class HeldOut:
    """Entries that are not fitted, to be predicted, in the order of cells."""

    cell: np.ndarray  # (h,): position
    gene: np.ndarray  # (h,): position
    y: np.ndarray  # (h,): value, float64

    def rows(self, rows: np.ndarray) -> HeldOut:
        """Held-out entries of some cells, at increasing positions, with the places of the cells among these."""
        first, last = np.searchsorted(self.cell, rows), np.searchsorted(self.cell, rows + 1)
        at = np.repeat(first - np.concatenate([[0], np.cumsum(last - first)[:-1]]), last - first)
        at = at + np.arange(len(at))
        return HeldOut(np.repeat(np.arange(len(rows)), last - first), self.gene[at], self.y[at])
