r"""Normal equations of rows, solved with their prior: one for each cell, one for each gene.

.. math::

    S_i^{-1} = P^{-1} + H_i, \qquad \alpha_i = S_i (P^{-1} \alpha_0 + h_i)

They are solved for :math:`L^{-1}(\alpha_i - \alpha_0)` with :math:`P = L L'`, in which the prior is the identity:
scales that relevance determination has sent to nothing do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...linalg.batch_inverse import blocks, invert, pack_last, unpack_last
from ...model.priors import free_coordinates

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import Gaussian

# a step may change the log rates of a row by this much, root mean square over its entries by weight
TRUST = 0.5
# a step that leaves more than this share of what was missing has swung past the optimum: the next ones are shorter
CLOSER, SHORTER = 0.95, 0.6
TINY = 1e-12


@dataclass(frozen=True)
class Solved:
    """q of some rows."""

    mean: Tensor  # (rows, k)
    cov: Tensor  # (rows, p): packed
    missing: Tensor  # (rows,): nats that the quadratic model expected the step to gain
    step: Tensor  # (rows, k): the whole step, from where the mean was
    change: Tensor  # (rows,): by how much it would change log rates, root mean square by weight

    def within(self, trust: Tensor, current: Tensor) -> Solved:
        """The step from `current`, shortened to `trust` (rows,) where it would change log rates by more."""
        return replace(self, mean=current + self.step * (trust / torch.maximum(self.change, trust))[:, None])


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
    shortened to that. Coordinates that the prior leaves out, from the second on, are known and stay as they are.
    """
    free = free_coordinates(current.shape[1], current.shape[1] - len(prior.mean), current.device)
    root = torch.linalg.cholesky(prior.cov)
    parts = [
        _solve(information[rows], target[rows], prior, root, free, current[rows], family)
        for rows in blocks(*target.shape)
    ]
    step, cov, missing, change = (torch.cat(values) for values in zip(*parts, strict=True))
    trust = target.new_full((len(target),), TRUST) if trust is None else trust
    return Solved(current, cov, missing, step, change).within(trust, current)


def where_observed(values: Tensor, observed: Tensor | None, genes: slice) -> Tensor:
    """The values of a block of entries, zero for those that are not data."""
    return values if observed is None else values.masked_fill(~observed[:, genes], 0)


def shortened(trust: Tensor, missing: Tensor, before: Tensor) -> Tensor:
    """How far rows may move next, given what the last two steps expected to gain."""
    return torch.where(missing > CLOSER * before, trust * SHORTER, trust)


def _solve(
    information: Tensor,
    target: Tensor,
    prior: Gaussian,
    root: Tensor,
    free: Tensor,
    current: Tensor,
    family: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k = current.shape[1]
    H, current, target = unpack_last(information, k), current.T, target.T
    root = root.to(H.dtype)
    centre = prior.means(current[1 : 1 + k - len(free)].T.double()).T.to(H.dtype)
    own = H if len(free) == k else H[free[:, None], free]
    white = _between(root.T, own, diagonal=prior.independent)
    white.diagonal().add_(1)
    inverse, _ = invert(white)
    # in steps from the current mean: what float32 leaves out of them is made good by the next one
    prior_pull = torch.linalg.solve_triangular(root, current[free] - centre, upper=False)
    pull = root.T @ (target - _times(H, current))[free] - prior_pull
    step = _times(inverse, pull)
    missing = 0.5 * (pull * step).sum(0)
    step = torch.zeros_like(current).index_copy(0, free, root @ step)
    change = ((_times(H, step) * step).sum(0) / H[0, 0].clamp_min(TINY)).clamp_min(0).sqrt()
    if family == "mean_field":
        precision = torch.linalg.inv(root @ root.T).diagonal()[:, None] + own.diagonal().T
        cov = torch.zeros_like(inverse)
        cov.diagonal().copy_((1 / precision).T)
    else:
        cov = _between(root, inverse, diagonal=prior.independent)
    if len(free) < k:
        full = torch.zeros_like(H)
        full[free[:, None], free] = cov
        cov = full
    return step.T.contiguous(), pack_last(cov), missing, change


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`M x` of symmetric matrices (k, k, rows) with vectors (k, rows)."""
    return (matrices * vectors).sum(1)


def _between(linear: Tensor, matrices: Tensor, *, diagonal: bool) -> Tensor:
    """`L M L'` of each matrix (k, k, rows); elementwise where L is diagonal, as it is but in the stored gauge."""
    if diagonal:
        return matrices * torch.outer(linear.diagonal(), linear.diagonal())[..., None]
    half = torch.tensordot(linear, matrices, dims=1)
    return torch.tensordot(linear, half.transpose(0, 1), dims=1)
