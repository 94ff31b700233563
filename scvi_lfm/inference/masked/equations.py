r"""Normal equations of rows with a covariance of their own, solved with their prior.

.. math::

    C_i^{-1} = P^{-1} + H_i, \qquad m_i = C_i (P^{-1} p + h_i)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...posterior.packed import pack
from ...posterior.rows_last import blocks, invert, pack_last, unpack_last

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import Gaussian


@dataclass(frozen=True)
class Rows:
    """q of some rows."""

    mean: Tensor  # (rows, k), float64
    cov: Tensor  # (rows, p): packed, in the dtype of the information
    log_det: Tensor  # (): sum over rows of log |C_i|


def solve_rows(information: Tensor, target: Tensor, prior: Gaussian, family: str) -> Rows:
    """Solve packed H (rows, p) and h (rows, k); mean field keeps the means and the diagonals of the precisions."""
    precision = torch.linalg.inv(prior.cov)
    pull = precision @ prior.mean
    parts = [_solve(information[rows], target[rows], precision, pull, family) for rows in blocks(*target.shape)]
    mean, cov, log_det = zip(*parts, strict=True)
    return Rows(torch.cat(mean), torch.cat(cov), torch.stack(log_det).sum())


def _solve(H: Tensor, h: Tensor, precision: Tensor, pull: Tensor, family: str) -> tuple[Tensor, Tensor, Tensor]:
    full = unpack_last(H, len(pull)).add_(precision.to(H.dtype)[..., None])
    target, own = (h + pull).T, full.diagonal().double()  # (k, rows), (rows, k)
    # inverted as correlations, and the means made good in float64: what float32 loses is little
    scale = own.rsqrt().T.to(H.dtype)
    inverse, pivots = invert(full * scale * scale[:, None])
    inverse.mul_(scale).mul_(scale[:, None])
    mean = _times(inverse, target.to(H.dtype)).double()
    mean += _times(inverse, (target - _times(full, mean)).to(H.dtype))
    if family == "mean_field":
        return mean.T, pack(torch.diag_embed(own.reciprocal())).to(H.dtype), -own.log().sum()
    return mean.T, pack_last(inverse), -pivots.double().log().sum() - own.log().sum()


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`M x` of symmetric matrices (k, k, rows) with vectors (k, rows), in the precision of the vectors."""
    return (matrices * vectors).sum(1)
