r"""Normal equations of rows, solved with their prior: one for each cell, one for each gene.

.. math::

    C_i^{-1} = P^{-1} + H_i, \qquad m_i = C_i (P^{-1} p + h_i)

They are solved for :math:`L^{-1}(m_i - p)` with :math:`P = L L'`, in which the prior is the identity: scales that
relevance determination has sent to nothing do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...posterior.packed import pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import Gaussian

# a step may change the log rates of a row by this much, root mean square over its entries by weight
TRUST = 0.5
# a step that leaves more than this share of what was missing has swung past the optimum: the next ones are shorter
CLOSER, SHORTER = 0.95, 0.6
ROWS_PER_BLOCK = 4096
TINY = 1e-12


@dataclass(frozen=True)
class Solved:
    """q of some rows."""

    mean: Tensor  # (rows, k)
    cov: Tensor  # (rows, p): packed
    missing: Tensor  # (rows,): nats that the quadratic model expected the step to gain


def solve_rows(
    information: Tensor,
    target: Tensor,
    prior: Gaussian,
    current: Tensor,
    family: str,
    trust: Tensor | None = None,
) -> Solved:
    """Solve packed H (rows, p) and h (rows, k), moving no further than trusted.

    A step from `current` that would change the row's log rates by more than `trust` (rows,), by default `TRUST`, is
    shortened to that.
    """
    root = torch.linalg.cholesky(prior.cov)
    limits = target.new_full((len(target),), TRUST) if trust is None else trust
    parts = [
        _solve(information[rows], target[rows], prior.mean, root, current[rows], limits[rows], family)
        for rows in _blocks(len(target))
    ]
    return Solved(*(torch.cat(values) for values in zip(*parts, strict=True)))


def shortened(trust: Tensor, missing: Tensor, before: Tensor) -> Tensor:
    """How far rows may move next, given what the last two steps expected to gain."""
    return torch.where(missing > CLOSER * before, trust * SHORTER, trust)


def _blocks(n_rows: int) -> list[slice]:
    return [slice(start, start + ROWS_PER_BLOCK) for start in range(0, n_rows, ROWS_PER_BLOCK)]


def _solve(
    information: Tensor,
    target: Tensor,
    centre: Tensor,
    root: Tensor,
    current: Tensor,
    trust: Tensor,
    family: str,
) -> tuple[Tensor, Tensor, Tensor]:
    H = unpack(information)
    root, centre = root.to(H.dtype), centre.to(H.dtype)
    white = root.T @ H @ root
    white.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky(white)
    # in steps from the current mean: what float32 leaves out of them is made good by the next one
    prior_pull = torch.linalg.solve_triangular(root, (current - centre).T, upper=False).T
    pull = (target - (H @ current[..., None])[..., 0]) @ root - prior_pull
    inverse = torch.linalg.solve_triangular(factor, root.T.expand_as(factor), upper=False)  # L^-1 R'
    step = torch.cholesky_solve(pull[..., None], factor)[..., 0]
    missing = 0.5 * (pull * step).sum(1)
    step = step @ root.T
    change = (((H @ step[..., None])[..., 0] * step).sum(1) / H[:, 0, 0].clamp_min(TINY)).clamp_min(0).sqrt()
    mean = current + step * (trust / torch.maximum(change, trust))[:, None]
    if family == "mean_field":
        precision = torch.linalg.inv(root @ root.T).diagonal() + H.diagonal(dim1=-2, dim2=-1)
        cov = torch.diag_embed(1 / precision)
    else:
        cov = inverse.mT @ inverse
    return mean, pack(cov), missing
