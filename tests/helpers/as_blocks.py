"""Cells that a test holds as one batch, as what inference visits block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_lfm.data import CellMatrix
from scvi_lfm.data.blocks import Blocks

if TYPE_CHECKING:
    from scvi_lfm.data import Batch


def as_blocks(batch: Batch) -> Blocks:
    """The cells of a batch all of whose entries are data."""
    values = batch.dense()
    matrix = CellMatrix.of(values.cpu().numpy(), covariates=batch.covariates)
    return Blocks.of_cells(matrix, None, batch.device, values.dtype, last=True)
