"""Symmetric matrices as rows of their lower triangles, k (k + 1) / 2 values each."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING

import torch

from .._workers import for_each

if TYPE_CHECKING:
    from torch import Tensor


# few enough to stay in a processor's cache
ROWS_PER_BLOCK = 1024
# float32 values in a cache line: matrices whose rows are whole lines are multiplied up to two fifths faster
LINE = 16


def packed_size(k: int) -> int:
    """Values in the lower triangle of a (k, k) matrix."""
    return k * (k + 1) // 2


def whole_lines(width: int) -> int:
    """The least width of whole cache lines that holds `width` values."""
    return -(-width // LINE) * LINE


def dimension(size: int) -> int:
    """The k whose lower triangle has `size` values."""
    return (isqrt(8 * size + 1) - 1) // 2


@lru_cache(maxsize=32)
def _indices(k: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = torch.tril_indices(k, k, device=device)
    position = torch.zeros(k, k, dtype=torch.long, device=device)
    position[rows, columns] = torch.arange(len(rows), device=device)
    position = torch.maximum(position, position.T).flatten()
    return rows, columns, rows * k + columns, position


def packed_positions(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the lower triangle in a flattened (k, k) matrix, and of each value of the matrix in the triangle."""
    return _indices(k, device)[2:]


def pack(matrices: Tensor) -> Tensor:
    """Lower triangles, (..., size), of symmetric matrices (..., k, k)."""
    k = matrices.shape[-1]
    return matrices.flatten(-2).index_select(-1, _indices(k, matrices.device)[2])


def unpack(values: Tensor) -> Tensor:
    """Symmetric matrices, (..., k, k), from lower triangles (..., size)."""
    k = dimension(values.shape[-1])
    return values.index_select(-1, _indices(k, values.device)[3]).unflatten(-1, (k, k))


def outer(x: Tensor) -> Tensor:
    """Packed `x x'` of each row, (..., size)."""
    rows, columns, _, _ = _indices(x.shape[-1], x.device)
    flat = x.reshape(-1, x.shape[-1])
    out = x.new_empty(len(flat), len(rows))
    for part, values in zip(flat.split(ROWS_PER_BLOCK), out.split(ROWS_PER_BLOCK), strict=True):
        torch.mul(part.index_select(1, rows), part.index_select(1, columns), out=values)
    return out.view(*x.shape[:-1], len(rows))


def slope_moments(v: Tensor, cov: Tensor, weight: Tensor | None = None) -> Tensor:
    """Packed `w E[v v']` of each row (rows, size): v = (1, B) with means (rows, k), where `cov` is that of (b, B)."""
    inside, out = off_first(v.shape[1], cov), torch.empty_like(cov)
    weight = cov.new_ones(1).expand(len(v)) if weight is None else weight
    blocks = (values.split(ROWS_PER_BLOCK) for values in (v, cov, weight, out))
    for slopes, spread, w, values in zip(*blocks, strict=True):
        torch.mul(outer(slopes).addcmul_(spread, inside), w[:, None], out=values)
    return out


def doubled(k: int, like: Tensor) -> Tensor:
    """Weights (size,) that make a dot product of packed values the trace of a product: 2 off the diagonal."""
    rows, columns, _, _ = _indices(k, like.device)
    return 2 - (rows == columns).to(like.dtype)


def diagonal(values: Tensor) -> Tensor:
    """Diagonals, (..., k)."""
    k = dimension(values.shape[-1])
    steps = torch.arange(k, device=values.device)
    return values[..., steps * (steps + 3) // 2]


def off_first(k: int, like: Tensor) -> Tensor:
    """Ones (size,) off the first row and column, zeros in them."""
    return (_indices(k, like.device)[1] > 0).to(like.dtype)


def root(matrices: Tensor) -> Tensor:
    """Lower Cholesky factors; coordinates without variance, which have no covariance either, get zeros."""
    none = (matrices.diagonal(dim1=-2, dim2=-1) == 0).to(matrices.dtype)
    matrices = matrices.clone()
    matrices.diagonal(dim1=-2, dim2=-1).add_(none)
    factor = torch.linalg.cholesky(matrices)
    factor.diagonal(dim1=-2, dim2=-1).sub_(none)
    return factor


def congruent(linear: Tensor, values: Tensor) -> Tensor:
    """Packed `F S F'` of packed S; F may change the dimension."""
    right = linear.to(values.dtype).mT
    if values.ndim == 1:
        return pack(right.mT @ unpack(values) @ right)
    rows = values.flatten(0, -2)
    moved = rows.new_empty(len(rows), packed_size(len(linear)))

    def move(block: tuple[Tensor, Tensor]) -> None:
        old, new = block
        new.copy_(pack(torch.bmm(right.mT.expand(len(old), -1, -1), unpack(old) @ right)))

    for_each(move, zip(rows.split(ROWS_PER_BLOCK), moved.split(ROWS_PER_BLOCK), strict=True))
    return moved.unflatten(0, values.shape[:-1])


def packed_part(kept: Tensor) -> Tensor:
    """Positions in a packed matrix of some of its rows and columns, in increasing order, as a packed matrix."""
    first, second = torch.tril_indices(len(kept), len(kept), device=kept.device)
    return kept[first] * (kept[first] + 1) // 2 + kept[second]


def inner(k: int, device: torch.device) -> Tensor:
    """Positions in a packed (k, k) matrix of the part without its first row and column."""
    return packed_part(torch.arange(1, k, device=device))


def first_column(k: int, device: torch.device) -> Tensor:
    """Positions of the first column of a packed (k, k) matrix."""
    steps = torch.arange(k, device=device)
    return steps * (steps + 1) // 2


def mean_variance(H: Tensor, cov: Tensor) -> Tensor:
    """`tr(H S) / H_00` of rows (rows, p) of both: the variance of `v . x`, its mean by the weights behind H."""
    return (H * cov) @ doubled(dimension(H.shape[1]), H) / H[:, 0].clamp_min(torch.finfo(H.dtype).tiny)
