"""Products of many rows, such as those of all genes, with small matrices: by blocks of rows, which workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .._workers import even_blocks, for_each

if TYPE_CHECKING:
    from torch import Tensor

# enough to be worth a worker's turn
ROWS = 4096


def row_parts(n_rows: int, device: torch.device) -> list[slice]:
    """Blocks of rows; a GPU takes all at once."""
    return even_blocks(n_rows, ROWS if device.type == "cpu" else max(n_rows, 1), device) or [slice(0, 0)]


def rows_times(rows: Tensor, linear: Tensor, plus: Tensor | None = None) -> Tensor:
    """`rows @ linear` in the precision of the rows, and `plus` (k,) added to each of them."""
    linear = linear.to(rows.dtype)
    plus = linear.new_zeros(linear.shape[1]) if plus is None else plus.to(rows.dtype)
    parts = row_parts(len(rows), rows.device)
    if len(parts) == 1:
        return torch.addmm(plus, rows, linear)
    product = rows.new_empty(len(rows), linear.shape[1])

    def fill(part: slice) -> None:
        torch.addmm(plus, rows[part], linear, out=product[part])

    for_each(fill, parts)
    return product
