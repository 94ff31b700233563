"""Covariances of rows (a, A) or (b, B): every form answers the same questions, so that no tool asks which it has.

`Common`: one matrix for every row. `Eigenbasis`: one basis for all rows, a diagonal for each. `Packed`: a matrix of its
own for each row, as `PackedUnderNoise` with the noise that it holds for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from .packed import congruent, diagonal, dimension, doubled, off_first, outer, pack, packed_size, root, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from torch import Tensor

ROWS_PER_BLOCK = 4096


class Covariance(ABC):
    """A covariance S_i of k coordinates for each row; a form gives three methods, and the others where it is faster."""

    by_row: ClassVar[bool] = True  # whether every row has a matrix of its own
    is_held: ClassVar[bool] = True  # whether its numbers are there, and not made when they are asked for

    @abstractmethod
    def packed(self) -> Tensor:
        """Lower triangles, (rows, p) or what broadcasts to it."""

    @abstractmethod
    def at(self, rows: Tensor | slice) -> Self:
        """Covariances of some rows: a boolean mask, positions or a slice."""

    @abstractmethod
    def moved(self, linear: Tensor) -> Covariance:
        """F S F' of each row."""

    def made(self) -> Covariance:
        """Covariances with nothing left to compute."""
        return self

    def blocks(self) -> Iterator[Tensor]:
        """Lower triangles by blocks of rows, one after the other."""
        yield self.packed()

    def diagonals(self) -> Tensor:
        """Variances, (rows, k)."""
        return torch.cat([diagonal(block) for block in self.blocks()])

    def total(self) -> Tensor:
        """Sum over rows, (k, k) in float64."""
        return unpack(torch.stack([block.sum(0, dtype=torch.float64) for block in self.blocks()]).sum(0))

    def inner(self, matrix: Tensor) -> Tensor:
        """tr(S_i T) for each row, (rows,) in the dtype of `matrix`."""
        flat = pack(matrix) * doubled(len(matrix), matrix)
        return torch.cat([block.to(matrix.dtype) @ flat for _, block in self._parts()])

    def quadratic(self, v: Tensor) -> Tensor:
        """v_i' S_i v_i, (rows,), for one v (rows, k) of each row."""
        return torch.cat([(_outer_products(v[rows]) * block).sum(1) for rows, block in self._parts()])

    def coordinates(self) -> Tensor:
        """The numbers that differ between rows, (rows, c) or (1, c), in which v' S_i v and tr(S_i T) are linear."""
        return self.packed()

    def forms(self, v: Tensor) -> Tensor:
        """Weights (l, c) that make v_l' S_i v_l of the coordinates, for each v (l, k)."""
        return _outer_products(v)

    def traces(self, matrices: Tensor) -> Tensor:
        """Weights (l, c) that make tr(S_i T_l) of the coordinates, for lower triangles of each T (l, p)."""
        return matrices * doubled(dimension(matrices.shape[1]), matrices)

    def slopes(self) -> Tensor:
        """Lower triangles with zeros for the first coordinate, whose traces are of the other ones, (rows, p)."""
        packed = self.packed()
        return packed * off_first(dimension(packed.shape[1]), packed)

    def spread(self, noise: Tensor) -> Tensor:
        """Draws with these covariances, (draws, rows, k), from standard Normal draws of that shape."""
        drawn = torch.empty_like(noise)
        for rows, block in self._parts():
            factor = root(unpack(block.to(noise.dtype)))
            for own, made in zip(noise[:, rows], drawn[:, rows], strict=True):
                made.copy_((factor @ own[..., None])[..., 0])
        return drawn

    def slope_products_of_pairs(self, other: Covariance) -> Tensor:
        """tr(S_AA T_BB) of each row with the same row of another, (rows,)."""
        return other.traces(self.slopes()).mul(other.coordinates()).sum(1)

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Lower triangles by blocks small enough that copies of them take little, with the rows of each."""
        start = 0
        for part in (part for block in self.blocks() for part in block.split(ROWS_PER_BLOCK)):
            yield slice(start, start + len(part)), part
            start += len(part)


class OneBasis(Covariance):
    """Covariances of all rows in one basis, which are worked with at once."""

    by_row = False

    def quadratic(self, v: Tensor) -> Tensor:
        return (self.coordinates() * self.forms(v)).sum(1)

    @abstractmethod
    def log_mean(self) -> Tensor:
        """A matrix in the basis of all rows, (k, k), whose log determinant is the mean of theirs."""

    @abstractmethod
    def joined(self, others: Sequence[Self]) -> Self:
        """Covariances of these rows and those of others, in the same basis."""

    @abstractmethod
    def without_level(self) -> tuple[Self, Tensor | None, Tensor | float]:
        """Covariances with noise of rows around a geometric mean of one, that noise, if there is any, and its level."""


@dataclass(frozen=True)
class Common(OneBasis):
    """One covariance for all rows."""

    matrix: Tensor  # (k, k)
    n_rows: int

    def packed(self) -> Tensor:
        return pack(self.matrix)[None]

    def at(self, rows: Tensor | slice) -> Common:
        return replace(self, n_rows=len(self.matrix.new_empty(self.n_rows)[rows]))

    def moved(self, linear: Tensor) -> Common:
        return replace(self, matrix=linear @ self.matrix @ linear.T)

    def diagonals(self) -> Tensor:
        return self.matrix.diagonal().expand(self.n_rows, -1)

    def total(self) -> Tensor:
        return self.matrix * self.n_rows

    def inner(self, matrix: Tensor) -> Tensor:
        return (self.matrix * matrix).sum().expand(self.n_rows)

    def coordinates(self) -> Tensor:
        return self.matrix.new_ones(1, 1)

    def forms(self, v: Tensor) -> Tensor:
        return ((v @ self.matrix) * v).sum(1, keepdim=True)

    def traces(self, matrices: Tensor) -> Tensor:
        return super().traces(matrices) @ self.packed().T

    def spread(self, noise: Tensor) -> Tensor:
        factor = root(self.matrix).T
        return torch.stack([own @ factor for own in noise])

    def log_mean(self) -> Tensor:
        return self.matrix

    def joined(self, others: Sequence[Common]) -> Common:
        return replace(self, n_rows=self.n_rows + sum(other.n_rows for other in others))

    def without_level(self) -> tuple[Common, None, float]:
        return self, None, 1.0


@dataclass(frozen=True)
class Eigenbasis(OneBasis):
    """`T_j = basis diag(1 / (w_j eig + 1)) basis'` with `w_j = 1 / sigma_j^2`."""

    basis: Tensor  # (k, k)
    eig: Tensor  # (k,)
    sigma: Tensor  # (rows,)

    @property
    def diagonal(self) -> Tensor:
        """Variances in the basis, (rows, k)."""
        return 1 / (self.eig / self.sigma.double().square()[:, None] + 1)

    def packed(self) -> Tensor:
        return torch.cat([pack((self.basis * d[:, None]) @ self.basis.T) for d in self.diagonal.split(ROWS_PER_BLOCK)])

    def at(self, rows: Tensor | slice) -> Eigenbasis:
        return replace(self, sigma=self.sigma[rows])

    def moved(self, linear: Tensor) -> Eigenbasis:
        return replace(self, basis=linear @ self.basis)

    def under(self, sigma: Tensor) -> Eigenbasis:
        """Covariances under another noise."""
        return replace(self, sigma=sigma)

    def diagonals(self) -> Tensor:
        return self.diagonal @ self.basis.square().T

    def total(self) -> Tensor:
        return (self.basis * self.diagonal.sum(0)) @ self.basis.T

    def inner(self, matrix: Tensor) -> Tensor:
        return self.diagonal @ ((matrix @ self.basis) * self.basis).sum(0)

    def coordinates(self) -> Tensor:
        return self.diagonal

    def forms(self, v: Tensor) -> Tensor:
        return (v @ self.basis).square()

    def traces(self, matrices: Tensor) -> Tensor:
        return matrices @ _outer_products(self.basis.T).T.to(matrices.dtype)

    def spread(self, noise: Tensor) -> Tensor:
        scale = self.diagonal.sqrt()
        return torch.stack([(scale * own) @ self.basis.T for own in noise])

    def log_mean(self) -> Tensor:
        return (self.basis * self.diagonal.log().mean(0).exp()) @ self.basis.T

    def joined(self, others: Sequence[Eigenbasis]) -> Eigenbasis:
        return self.under(torch.cat([self.sigma, *(other.sigma for other in others)]))

    def without_level(self) -> tuple[Eigenbasis, Tensor, Tensor]:
        level = self.sigma.log().mean().exp()
        sigma = self.sigma / level
        return replace(self, sigma=sigma, eig=self.eig / level.square()), sigma, level


@dataclass(frozen=True)
class Packed(Covariance):
    """A covariance of its own for each row."""

    values: Tensor  # (rows, p): packed lower triangles

    def packed(self) -> Tensor:
        return self.values

    def at(self, rows: Tensor | slice) -> Self:
        return replace(self, values=self.values[rows])

    def moved(self, linear: Tensor) -> Packed:
        moved = self.values.new_empty(len(self.values), packed_size(len(linear)))
        for new, old in zip(moved.split(ROWS_PER_BLOCK), self.values.split(ROWS_PER_BLOCK), strict=True):
            new.copy_(congruent(linear, old.to(linear.dtype)))
        return Packed(moved)


@dataclass(frozen=True)
class PackedUnderNoise(Packed):
    """`T_j = (prior^-1 + w_j H_j)^-1` with `w_j = 1 / sigma_j^2`, a matrix H_j of its own for each row."""

    sigma: Tensor  # (rows,)
    prior: Tensor  # (k, k)

    def at(self, rows: Tensor | slice) -> PackedUnderNoise:
        return replace(self, values=self.values[rows], sigma=self.sigma[rows])

    def moved(self, linear: Tensor) -> PackedUnderNoise:
        return replace(self, values=super().moved(linear).values, prior=linear @ self.prior @ linear.T)

    def under(self, sigma: Tensor) -> PackedUnderNoise:
        """Covariances under another noise."""
        if torch.equal(sigma, self.sigma):
            return self
        ratio = (self.sigma.double() / sigma.double()).square()
        precision = torch.linalg.inv(self.prior)
        parts = [
            pack(torch.linalg.inv(torch.lerp(precision, torch.linalg.inv(unpack(values.double())), r[:, None, None])))
            for values, r in zip(self.values.split(ROWS_PER_BLOCK), ratio.split(ROWS_PER_BLOCK), strict=True)
        ]
        return replace(self, values=torch.cat(parts).to(self.values.dtype), sigma=sigma)


def _outer_products(v: Tensor) -> Tensor:
    """Packed v v' (l, p), whose dot product with a packed matrix is a quadratic form."""
    return outer(v) * doubled(v.shape[1], v)
