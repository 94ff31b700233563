"""How many values a source stores, where only a reading of all of them tells: what some of the cells say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .summary import stored_values

if TYPE_CHECKING:
    from .source import CellSource

# one in so many cells is read, in a few runs from all over the data
ONE_IN, RUNS = 50, 4


@dataclass(frozen=True)
class Stored:
    """Number of stored entries: about, and the most that there may be."""

    about: float
    at_most: float

    @classmethod
    def of(cls, source: CellSource) -> Stored:
        """The number that is known, or what some of the cells tell."""
        n_cells, n_genes = source.shape
        if source.knows_n_stored or n_cells == 0:
            return cls(source.n_stored, source.n_stored)
        size = -(-n_cells // (ONE_IN * RUNS))
        starts = np.unique(np.linspace(0, n_cells - size, RUNS).astype(int))
        found = sum(stored_values(source.rows(slice(int(start), int(start) + size))).size for start in starts)
        n_read = size * len(starts)
        return cls(found * n_cells / n_read, found + (n_cells - n_read) * n_genes)
