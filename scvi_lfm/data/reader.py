"""What sources that are not in memory share: any cells are read as a few spans of consecutive ones."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .._memory import is_out_of_memory
from .memory import take
from .selected import Selected, Without
from .source import CellSource, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp

# to read so many values that nobody asked for takes no longer than to read once more
VALUES_BETWEEN = 2**14


class SpanReader(CellSource):
    """A source that reads consecutive cells."""

    place = "file"

    @abstractmethod
    def span(self, start: int, stop: int) -> sp.csr_array | np.ndarray:
        """The values of consecutive cells, canonical and in memory."""

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells, by position, in any order."""
        if isinstance(which, slice):
            start, stop, step = which.indices(self.shape[0])
            if step == 1:
                return self.span(start, max(start, stop))
            which = np.arange(start, stop, step)
        wanted, place = np.unique(which, return_inverse=True)
        found = [
            take(self.span(int(cells[0]), int(cells[-1]) + 1), _within(cells))
            for cells in _spans(wanted, 1 + int(VALUES_BETWEEN / max(self.values_per_cell, 1)))
        ]
        block = stacked(found) if found else self.span(0, 0)
        return block if len(which) == len(wanted) and (np.diff(place) > 0).all() else block[place]

    def at_genes(self, genes: np.ndarray) -> Selected:
        """The columns of some genes, by position or mask."""
        return Selected(self, genes=np.arange(self.shape[1])[genes])

    def without(self, mask: sp.csr_array) -> Without:
        """The source less the entries of a mask."""
        return Without(self, mask)


def _within(cells: np.ndarray) -> slice | np.ndarray:
    """Positions of increasing cells in their span."""
    first, last = int(cells[0]), int(cells[-1])
    return slice(0, len(cells)) if last - first + 1 == len(cells) else cells - first


def _spans(cells: np.ndarray, gap: int) -> list[np.ndarray]:
    """Increasing positions, cut where the next is further away than a gap."""
    return np.split(cells, np.flatnonzero(np.diff(cells) > gap) + 1) if len(cells) else []


@contextmanager
def reading(where: str, cells: slice | None = None) -> Iterator[None]:
    """Say what could not be read, whatever the library below says."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        if is_out_of_memory(error):
            raise
        detail = " ".join(str(error).split()) or type(error).__name__
        place = "" if cells is None else f" at cells {cells.start} to {cells.stop - 1}"
        msg = (
            f"The values of {where} could not be read{place} ({detail}). Their file may be closed, moved or damaged: "
            "open it again, and if that does not help, write it anew."
        )
        raise OSError(msg) from error
