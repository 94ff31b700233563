"""Many small symmetric matrices at once, (k, k, rows): the rows come last, and one operation serves all of them.

LAPACK inverts matrices one after the other, and small ones cost it mostly calls; see :func:`invert`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .._workers import even_blocks
from .packed import packed_positions

if TYPE_CHECKING:
    from torch import Tensor

# few enough to stay in a processor's cache, many enough to be worth an operation
VALUES_PER_BLOCK = 2**20
LEAST_ROWS = 64
# on a GPU each operation has a cost of its own, and few large blocks are best
VALUES_PER_GPU_BLOCK = 2**25


def row_blocks(n_rows: int, k: int, device: torch.device) -> list[slice]:
    """Blocks of rows of a size that suits (k, k) matrices."""
    n_values = VALUES_PER_BLOCK if device.type == "cpu" else VALUES_PER_GPU_BLOCK
    return even_blocks(n_rows, max(LEAST_ROWS, n_values // k**2), device)


def unpack_last(values: Tensor, k: int, part: Tensor | None = None) -> Tensor:
    """Matrices (k, k, rows) from lower triangles (rows, size), or from those at `part` (size,) of wider rows."""
    _, position = packed_positions(k, values.device)
    position = position if part is None else part[position]
    return values.T.contiguous().index_select(0, position).unflatten(0, (k, k))


def pack_last(matrices: Tensor) -> Tensor:
    """Lower triangles (rows, size) of matrices (k, k, rows), a view of (size, rows)."""
    lower, _ = packed_positions(len(matrices), matrices.device)
    return matrices.flatten(0, 1).index_select(0, lower).T


def invert(matrices: Tensor) -> tuple[Tensor, Tensor]:
    r"""Inverses of positive definite matrices (k, k, rows), in place, and their pivots (k, rows), whose product is det.

    Sweeps of each coordinate in turn, after which the matrix is its own inverse:

    .. math::

        M_{jj} \gets 1 / d, \quad M_{j\cdot} \gets M_{j\cdot} / d, \quad M_{\cdot j} \gets -M_{\cdot j} / d, \quad
        M_{kl} \gets M_{kl} - M_{kj} M_{jl} / d, \qquad d = M_{jj}

    On a GPU a matrix that is not positive definite gets NaN, pivots too: it would wait for the answer.

    Raises
    ------
    torch.linalg.LinAlgError
        If a pivot is not positive, on the CPU.

    References
    ----------
    Goodnight 1979, A tutorial on the SWEEP operator, The American Statistician 33:149-158.
    """
    pivots = torch.empty_like(matrices[0])
    for j in range(len(matrices)):
        pivots[j] = matrices[j, j]
        one_over = pivots[j].reciprocal()
        row, column = matrices[j] * one_over, matrices[:, j].clone()
        # where there is nothing any more, the product of these two is what the sweep leaves
        row[j], column[j] = one_over, -1
        matrices[j], matrices[:, j] = 0, 0
        matrices.addcmul_(column[:, None], row[None], value=-1)
    if matrices.device.type != "cpu":
        fine = torch.where((pivots > 0).all(0), 1.0, torch.nan).to(pivots)
        return matrices.mul_(fine), pivots.mul_(fine)
    if not bool((pivots > 0).all()):
        msg = "a matrix is not positive definite"
        raise torch.linalg.LinAlgError(msg)
    return matrices, pivots
