"""Products of compressed matrices with dense ones, by panels of columns that stay in a processor's cache.

Each stored value meets a row of the dense matrix. Whole rows of a few hundred columns come from memory each time: by
panels such a product is several times as fast. Every sum has the same terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

COLUMNS = 32  # two cache lines of float32
# where a row of the dense matrix is met less often, on the average, the copies would take longer than they save
OFTEN = 10


def panels(values: Tensor) -> list[Tensor]:
    """The columns of a dense matrix (rows, k), a few at a time."""
    return [some.contiguous() for some in values.split(COLUMNS, dim=1)]


def times_panels(matrix: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """`matrix @ values` of a compressed matrix with a dense one, given by its panels."""
    widths = [some.shape[1] for some in parts]
    product = torch.empty(matrix.shape[0], sum(widths), dtype=matrix.dtype, device=matrix.device)
    for some, columns in zip(parts, product.split(widths, dim=1), strict=True):
        # the operator @ would fill and copy the result before it is computed, which takes longer than computing it
        torch.addmm(columns, matrix, some, beta=0, out=columns)
    return product


def compressed_product(matrix: Tensor, values: Tensor) -> Tensor:
    """`matrix @ values` of a compressed matrix, by panels where it pays."""
    pays = matrix.device.type == "cpu" and matrix._nnz() > OFTEN * len(values)
    return times_panels(matrix, panels(values) if pays else [values])
