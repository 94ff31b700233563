"""Rows with a one in front, (1, row), and their second moments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from .._workers import in_order
from .rows import row_parts

if TYPE_CHECKING:
    from torch import Tensor


def one_first(rows: Tensor) -> Tensor:
    """Rows (1, row)."""
    return functional.pad(rows, (1, 0), value=1.0)


def without_columns(matrix: Tensor, first: int, count: int = 1) -> Tensor:
    """A matrix without `count` columns from the first one on."""
    return torch.cat([matrix[:, :first], matrix[:, first + count :]], dim=1)


def row_moment(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over rows of w xi xi' with xi = (1, row), without a copy that has the ones; w is 1 by default."""

    def of_part(part: slice) -> Tensor:
        some = rows[part]
        weighted = some if weights is None else weights[part, None] * some
        moment = some.new_empty(some.shape[1] + 1, some.shape[1] + 1)
        moment[0, 0] = len(some) if weights is None else weights[part].sum()
        moment[0, 1:] = moment[1:, 0] = weighted.sum(0)
        moment[1:, 1:] = some.T @ weighted
        return moment

    return torch.stack(list(in_order(of_part, row_parts(len(rows), rows.device)))).sum(0)
