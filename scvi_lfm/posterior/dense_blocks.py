"""Blocks of cells as tools that look at every entry read them: dense, with their posterior, and each one worker's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from ..data.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from ..data import CellMatrix
    from ..data.batch import Batch
    from .posterior import Posterior
    from .shares_left_out import SharesLeftOut

Result = TypeVar("Result")

# what is computed of an entry goes through a dozen arrays, which leave a processor's cache where they are larger
ENTRIES_PER_BLOCK = 2**20


@dataclass(frozen=True)
class DenseBlock:
    """Consecutive cells with all genes; what lies densely is made when it is asked for, by whoever asks."""

    start: int  # position of the first
    batch: Batch
    posterior: Posterior  # of these cells
    taken: SharesLeftOut | None = None  # values of theirs of which their posterior has not seen a share

    def values(self) -> Tensor:
        """Array of all values, (cells, m)."""
        values = self.batch.values
        if isinstance(values, torch.Tensor) or self.batch.device.type != "cpu":
            return self.batch.dense()
        return torch.from_numpy(values.toarray())

    def observed(self) -> Tensor | None:
        """Pattern of the entries that are data, boolean (cells, m); None: all are."""
        observed = self.batch.observed
        if observed is None:
            return None
        if self.batch.device.type != "cpu":
            return self.batch.is_observed()
        inside = torch.from_numpy(observed.pattern.astype(bool).toarray())
        return inside if observed.only else ~inside


class DenseBlocks:
    """All cells of a matrix in blocks, in order, each read when there is a worker for it."""

    def __init__(self, matrix: CellMatrix, device: torch.device) -> None:
        self._matrix, self._device = matrix, device
        self._blocks = self._of(block_size(matrix.shape[1]) if device.type == "cpu" else None)

    def _of(self, size: int | None) -> Blocks:
        return Blocks.of_size(self._matrix, self._device, size)

    @property
    def on_cluster(self) -> bool:
        """Whether blocks are worked on elsewhere: what is found in them travels, and what `pool` makes of it."""
        return self._blocks.on_cluster

    def each(
        self,
        function: Callable[[DenseBlock], Result],
        q: Posterior,
        taken: SharesLeftOut | None = None,
        *,
        pool: Callable[[Iterable[Result], int], Result] | None = None,
    ) -> Iterator[Result]:
        """Results of `function` for each block with its part of a posterior, in order; `pool` as in :class:`Blocks`.

        The function itself may hold what a posterior says of genes, and nothing of cells.
        """

        def of_block(batch: Batch, start: int, some: Posterior, taken: SharesLeftOut | None) -> Result:
            return function(DenseBlock(start, batch, some, taken))

        places = self._blocks.places
        starts, some = [place.start for place in places], [q.at_cells(place) for place in places]
        of_taken = [None if taken is None else taken.rows(place) for place in places]
        return self._blocks.each(of_block, starts, some, of_taken, pool=pool)

    def each_posterior(
        self,
        function: Callable[[Posterior], Result],
        q: Posterior,
        size: int,
        *,
        pool: Callable[[Iterable[Result], int], Result] | None = None,
    ) -> Iterator[Result]:
        """Results of `function` for the posterior of some cells after the other, `size` at a time; no value is read."""
        blocks = self._of(size)
        return blocks.each_without_values(function, [q.at_cells(place) for place in blocks.places], pool=pool)


def block_size(n_genes: int) -> int:
    """Number of cells that are worked on at a time."""
    return max(1, ENTRIES_PER_BLOCK // max(n_genes, 1))
