"""What tools that pass over all values share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.blocks import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from ..data import CellMatrix


def dense_blocks(matrix: CellMatrix, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Blocks of cells: positions, dense values (cells, m), and which of them are data (None: all)."""
    return ((cells, batch.dense(), batch.is_observed()) for cells, batch in blocks(matrix, device))
