"""Blocks of cells as tools that look at every entry read them: dense, and each one worker's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..data.blocks import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..data import CellMatrix
    from ..data.batch import Batch

# what is computed of an entry goes through a dozen arrays, which leave a processor's cache where they are larger
ENTRIES_PER_BLOCK = 2**20


@dataclass(frozen=True)
class DenseBlock:
    """Consecutive cells with all genes; what lies densely is made when it is asked for, by whoever asks."""

    cells: slice
    batch: Batch

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


def dense_blocks(matrix: CellMatrix, device: torch.device) -> Iterator[DenseBlock]:
    """Blocks of every cell once, in order, each read when it is asked for."""
    size = block_size(matrix.shape[1]) if device.type == "cpu" else None
    return (DenseBlock(cells, batch) for cells, batch in blocks(matrix, device, size=size))


def block_size(n_genes: int) -> int:
    """Number of cells that are worked on at a time."""
    return max(1, ENTRIES_PER_BLOCK // max(n_genes, 1))
