r"""Normal equations of rows with a covariance of their own, solved with their prior.

.. math::

    C_i^{-1} = P^{-1} + H_i, \qquad m_i = C_i (P^{-1} p + h_i)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...posterior.packed import pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import Gaussian

# few enough to stay in a processor's cache
ROWS_PER_BLOCK = 1024


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
    parts = [
        _solve(H, h, precision, pull, family)
        for H, h in zip(information.split(ROWS_PER_BLOCK), target.split(ROWS_PER_BLOCK), strict=True)
    ]
    mean, cov, log_det = zip(*parts, strict=True)
    return Rows(torch.cat(mean), torch.cat(cov), torch.stack(log_det).sum())


def _solve(H: Tensor, h: Tensor, precision: Tensor, pull: Tensor, family: str) -> tuple[Tensor, Tensor, Tensor]:
    full = unpack(H).double() + precision
    factor = torch.linalg.cholesky(full)
    target = h.double() + pull
    if family == "mean_field":
        mean = torch.cholesky_solve(target[..., None], factor)[..., 0]
        variances = full.diagonal(dim1=-2, dim2=-1).reciprocal()
        return mean, pack(torch.diag_embed(variances)).to(H.dtype), variances.log().sum()
    inverse = torch.cholesky_inverse(factor)
    log_det = -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
    return (inverse @ target[..., None])[..., 0], pack(inverse).to(H.dtype), log_det
