"""Blocks of cells as tools that look at every entry read them: dense, and each one worker's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..data.blocks import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
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
        """All values, (cells, m)."""
        values = self.batch.values
        return values if isinstance(values, torch.Tensor) else _dense(values, self.batch.device)

    def observed(self) -> Tensor | None:
        """Which entries are data, a boolean (cells, m) tensor; None: all."""
        observed = self.batch.observed
        if observed is None:
            return None
        inside = _dense(observed.pattern.astype(bool), self.batch.device)
        return inside if observed.only else ~inside


def dense_blocks(matrix: CellMatrix, device: torch.device) -> Iterator[DenseBlock]:
    """Every cell once, in order, each block read when it is asked for."""
    size = None if device.type == "cuda" else block_size(matrix.shape[1])
    return (DenseBlock(cells, batch) for cells, batch in blocks(matrix, device, size=size))


def block_size(n_genes: int) -> int:
    """Number of cells that are worked on at a time."""
    return max(1, ENTRIES_PER_BLOCK // max(n_genes, 1))


def _dense(values: sp.csr_array, device: torch.device) -> Tensor:
    return torch.from_numpy(values.toarray()).to(device)
