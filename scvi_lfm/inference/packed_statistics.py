"""What genes need of averages over cells that are packed, one matrix of x = (1, a, A) for each gene."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ..linalg.moments import without_columns
from ..linalg.packed import dimension, packed_part

if TYPE_CHECKING:
    from torch import Tensor


def right_side(with_one: Tensor, with_activity: Tensor, response: Tensor, mu: Tensor) -> Tensor:
    """The right sides of the genes' normal equations, (m, k), as averages over cells, from :func:`margins`."""
    return without_columns(response, 1) - mu.to(with_one.dtype) * with_one - with_activity


def margins(weighted: Tensor) -> tuple[Tensor, Tensor]:
    """`E[u]` and `E[a u]` by weight, (m, k) each, from packed ones of x = (1, a, A), with u = (1, A)."""
    row = torch.arange(1, dimension(weighted.shape[1]), device=weighted.device)
    row[0] = 0  # that of a
    first = row * (row + 1) // 2
    return weighted.index_select(1, first), weighted.index_select(1, first + 1)


@lru_cache(maxsize=32)
def without_activity(k: int, device: torch.device) -> Tensor:
    """Positions of packed (1, A), k values, within packed (1, a, A)."""
    coordinate = torch.arange(k, device=device)
    return packed_part(coordinate + (coordinate > 0))
