r"""Normal equations of rows with a covariance of their own, solved with their prior.

.. math::

    S_i^{-1} = P^{-1} + H_i, \qquad \alpha_i = S_i (P^{-1} \alpha_0 + h_i)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...linalg.batch_inverse import blocks, invert, pack_last, unpack_last
from ...linalg.packed import congruent, pack, packed_size

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import Gaussian
    from ...posterior.gauge import Move


@dataclass(frozen=True)
class Rows:
    """q of some rows."""

    mean: Tensor  # (rows, k), float64
    cov: Tensor  # (rows, p): packed, in the dtype of the information
    log_det: Tensor  # (): sum over rows of log |S_i|

    def moved(self, move: Move) -> Rows:
        """Cells after a gauge move."""
        log_det = 2 * len(self.mean) * torch.linalg.slogdet(move.cell_map).logabsdet
        return Rows(move.cells(self.mean), congruent(move.cell_map, self.cov), self.log_det + log_det)


def solve_rows(
    information: Tensor,
    target: Tensor,
    prior: Gaussian,
    family: str,
    weight: Tensor | None = None,
    part: Tensor | None = None,
) -> Rows:
    """Solve packed H (rows, p) and h (rows, k), both times `weight` (rows,) if given.

    `part` (p,) tells where H is in rows of more values. Mean field keeps the means and the diagonals of the precisions.
    """
    precision = torch.linalg.inv(prior.cov)
    pull = precision @ prior.mean
    k, log_det = len(pull), target.new_zeros(())
    mean, cov = torch.empty_like(target), information.new_empty(len(target), packed_size(k))
    for rows in blocks(*target.shape):
        full = unpack_last(information[rows], k, part)
        h = target[rows].T  # (k, rows)
        if weight is not None:
            full.mul_(weight[rows].to(full.dtype))
            h = h * weight[rows]
        full += precision.to(full.dtype)[..., None]
        solved, cov[rows], added = _solve(full, h + pull[:, None], family)
        mean[rows] = solved.T
        log_det += added
    return Rows(mean, cov, log_det)


def _solve(full: Tensor, target: Tensor, family: str) -> tuple[Tensor, Tensor, Tensor]:
    """Means (k, rows), packed covariances (rows, p) and the sum of their log determinants, from precisions."""
    inverse, pivots = invert(full.clone())
    # the means are made good in float64: what float32 loses is little
    mean = _times(inverse, target.to(full.dtype)).double()
    mean += _times(inverse, (target - _times(full, mean)).to(full.dtype))
    if family == "mean_field":
        own = full.diagonal().double()  # (rows, k)
        return mean, pack(torch.diag_embed(own.reciprocal())), -own.log().sum()
    return mean, pack_last(inverse), -pivots.double().log().sum()


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`M x` of symmetric matrices (k, k, rows) with vectors (k, rows), in the precision of the vectors."""
    product = matrices[0] * vectors[0]
    for row, x in zip(matrices[1:], vectors[1:], strict=True):
        product.addcmul_(row, x)
    return product
