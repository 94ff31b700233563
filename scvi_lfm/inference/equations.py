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

from .._workers import for_each
from ..linalg.batch_inverse import invert, pack_last, row_blocks, unpack_last
from ..linalg.packed import diagonal, packed_size
from ..model.priors import free_coordinates

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import Gaussian

# a bounded step may change eta of a row by this much, root mean square over its entries by weight
TRUST = 0.5
# a step that leaves more than this share of what was missing has swung past the optimum: the next ones are shorter
CLOSER, SHORTER = 0.95, 0.6
# of steps that are expected to gain more nats, two do not tell where the next ones end
CLOSE = 1.0
# shares where each step is four fifths of the last one, and where it undoes the last one
FURTHEST, HALF_BACK = -4.0, 0.5
TINY = 1e-12


@dataclass(frozen=True)
class Solved:
    """q of some rows."""

    mean: Tensor  # (rows, k)
    cov: Tensor  # (rows, p): packed
    log_det: Tensor  # (rows,): log |S_i| of what is not known; 0 with a start
    missing: Tensor  # (rows,): nats that the quadratic model expected the step to gain; 0 without a start
    step: Tensor  # (rows, k): the whole last step
    change: Tensor  # (rows,): by how much it would change eta, root mean square by weight; 0 without a start
    variance: Tensor  # (rows,): of eta, its mean by weight; 0 without a start

    def within(self, current: Tensor, trust: Tensor | None = None) -> Solved:
        """The step from `current`, shortened to `trust` (rows,), by default `TRUST`, if it would change eta more."""
        trust = self.change.new_full((len(self.change),), TRUST) if trust is None else trust
        return replace(self, mean=current + self.step * (trust / torch.maximum(self.change, trust))[:, None])

    def damped(self, cov: Tensor) -> Solved:
        """The covariances a share of their way from `cov` (rows, p), of rows whose rates they change themselves.

        A row with next to no counts has a wide q, which makes its rates large, which make q narrow: in full steps it
        would swing.
        """
        rows = torch.arange(len(cov), device=cov.device)
        if cov.device.type == "cpu":  # a GPU would wait for which rows these are
            rows = rows[self.variance > 1]
            if len(rows) == 0:
                return self
        solved = self.cov[rows]
        damped = torch.lerp(cov[rows].to(solved), solved, (1 / self.variance[rows].clamp_min(1))[:, None])
        after, whole = diagonal(damped), diagonal(solved)
        # nats that are still to be gained, to the second order
        left = ((whole - after) / whole.clamp_min(TINY)).square().sum(1) / 4
        return replace(
            self,
            cov=self.cov.index_copy(0, rows, damped),
            missing=self.missing.index_add(0, rows, left.to(self.missing)),
        )


def solve_rows(
    information: Tensor,
    target: Tensor,
    prior: Gaussian,
    family: str,
    current: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    part: Tensor | None = None,
) -> Solved:
    """Solve packed H (rows, p) and h (rows, k), both times `weight` (rows,) if given.

    `current` (rows, k) is where the step begins; without a start, a second step makes the means good.
    `part` (p,) tells where H is in rows of more values. Mean field keeps the means and the diagonals of the precisions.
    Coordinates that
    the prior leaves out, from the second on, are known and stay as they are.
    """
    system = _System(prior, target.shape[1], family, bounded=current is not None)
    current = torch.zeros_like(target) if current is None else current

    n, k = target.shape
    found = Solved(
        mean=torch.empty_like(current),
        cov=information.new_empty(n, packed_size(k)),
        log_det=information.new_empty(n, dtype=torch.float64),
        missing=information.new_empty(n),
        step=torch.empty_like(current),
        change=torch.empty_like(current[:, 0]),
        variance=information.new_empty(n),
    )

    def solve(rows: slice) -> None:
        H, h = unpack_last(information[rows], k, part), target[rows].T
        if weight is not None:
            H.mul_(weight[rows].to(H.dtype))
            h = h * weight[rows]
        for values, of_rows in zip(vars(found).values(), system.solve(H, h, current[rows].T), strict=True):
            values[rows] = of_rows

    for_each(solve, row_blocks(n, k, target.device))
    return found


def shortened(trust: Tensor, missing: Tensor, before: Tensor) -> Tensor:
    """Bounds on the next step of rows, given what the last two steps expected to gain."""
    return torch.where(missing > CLOSER * before, trust * SHORTER, trust)


@dataclass(frozen=True)
class NewtonStep:
    """A bounded step of rows: where from, by how much, and what it was expected to gain."""

    start: Tensor  # (rows, k)
    step: Tensor  # (rows, k)
    missing: Tensor  # (rows,)

    def at(self, rows: Tensor) -> NewtonStep:
        """The step of some rows."""
        return NewtonStep(self.start[rows], self.step[rows], self.missing[rows])

    def closer(self, last: NewtonStep) -> Tensor:
        """Whether two steps tell where the next ones end, (rows,): close to it, and closer by the second."""
        return self.missing < last.missing.clamp(max=CLOSE)

    def mixed(self, last: NewtonStep, cov: Tensor) -> Tensor:
        """Means (rows, k) after the step, with what it and the `last` one tell of the next ones.

        Steps that go a little further each time, or back and forth, show where they end: Anderson acceleration of depth
        one, in units of the standard deviations in `cov` (rows, p).

        References
        ----------
        Walker and Ni 2011, Anderson acceleration for fixed-point iterations, SIAM Journal on Numerical Analysis
        49:1715-1735, section 2.
        """
        change = self.step - last.step
        scaled = change / diagonal(cov).clamp_min(TINY)
        share = (scaled * self.step).sum(1) / (scaled * change).sum(1).clamp_min(TINY)
        share = share.clamp(FURTHEST, HALF_BACK) * self.closer(last)
        return self.start + self.step - share[:, None] * (self.start - last.start + change)


class _System:
    """The prior of rows of k coordinates, and how equations of a block of rows are solved with it."""

    def __init__(self, prior: Gaussian, k: int, family: str, *, bounded: bool) -> None:
        self._prior, self._family, self._bounded = prior, family, bounded
        self._root = torch.linalg.cholesky(prior.cov)
        self._free = free_coordinates(k, k - len(prior.mean), prior.mean.device)
        self._own_precision = torch.linalg.inv(prior.cov).diagonal()

    def solve(self, H: Tensor, target: Tensor, current: Tensor) -> tuple[Tensor, ...]:
        """Means, covariances and log determinants, and of a bounded step its missing nats, itself and its change."""
        k, free, root, precise = len(H), self._free, self._root.to(H.dtype), self._root.to(target.dtype)
        known = current[1 : 1 + k - len(free)]
        centre = self._prior.means(known.T.double()).T.to(target.dtype)
        own = H if len(free) == k else H[free[:, None], free]
        white = _between(root.T, own, diagonal=self._prior.independent)
        white.diagonal().add_(1)
        inverse, pivots = invert(white)
        # what float32 leaves out of a step is made good by the next one
        mean, left = current, target - _times(H, current) if self._bounded else target
        missing = change = target.new_zeros(target.shape[1])
        for number in range(1 if self._bounded else 2):
            short = torch.linalg.solve_triangular(precise, mean[free] - centre, upper=False)
            pull = (precise.T @ left[free] - short).to(H.dtype)
            white_step = _times(inverse, pull)
            step = torch.zeros_like(target).index_copy(0, free, (root @ white_step).to(target.dtype))
            mean = mean + step
            if self._bounded:
                missing = 0.5 * (pull * white_step).sum(0)
                change = ((_times(H, step) * step).sum(0) / H[0, 0].clamp_min(TINY)).clamp_min(0).sqrt()
            elif number == 0:
                left = left - _times(H, step)
        if self._family == "mean_field":
            pivots = self._own_precision.to(H.dtype)[:, None] + own.diagonal().T
            cov = torch.zeros_like(inverse)
            cov.diagonal().copy_((1 / pivots).T)
        else:
            cov = _between(root, inverse, diagonal=self._prior.independent)
        variance = torch.zeros_like(H[0, 0])
        if self._bounded:
            variance = (own * cov).sum((0, 1)) / H[0, 0].clamp_min(TINY)
        log_det = torch.zeros_like(H[0, 0], dtype=torch.float64)
        if not self._bounded:
            of_prior = 0 if self._family == "mean_field" else 2 * self._root.diagonal().log().sum()
            log_det = of_prior - pivots.double().log().sum(0)
        if len(free) < k:
            full = torch.zeros_like(H)
            full[free[:, None], free] = cov
            cov = full
        return mean.T, pack_last(cov), log_det, missing, step.T, change, variance


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`M x` of symmetric matrices (k, k, rows) with vectors (k, rows), in the precision of the vectors."""
    product = matrices[0] * vectors[0]
    for row, x in zip(matrices[1:], vectors[1:], strict=True):
        product.addcmul_(row, x)
    return product


def _between(linear: Tensor, matrices: Tensor, *, diagonal: bool) -> Tensor:
    """`L M L'` of each matrix (k, k, rows); elementwise where L is diagonal, as it is but in the stored gauge."""
    if diagonal:
        return matrices * torch.outer(linear.diagonal(), linear.diagonal())[..., None]
    half = torch.tensordot(linear, matrices, dims=1)
    return torch.tensordot(linear, half.transpose(0, 1), dims=1)
