"""Posterior covariances of rows (a, A) or (b, B), in the three forms that inference gives.

`Common`: one matrix for every row. `Eigenbasis`: one basis for all rows, a diagonal for each. `Packed`: a matrix of its
own for each row, as `PackedUnderNoise` with the noise that it holds for. All answer the same questions, so that no tool
asks which form it has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .packed import congruent, diagonal, doubled, outer, pack, root, unpack

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch import Tensor

ROWS_PER_BLOCK = 4096


@dataclass(frozen=True)
class Common:
    """The same covariance for every row."""

    matrix: Tensor  # (k, k)
    n_rows: int

    def diagonals(self) -> Tensor:
        """Variances, (rows, k)."""
        return self.matrix.diagonal().expand(self.n_rows, -1)

    def at(self, rows: Tensor | slice) -> Common:
        """The covariances of some rows: a boolean mask, positions or a slice."""
        return replace(self, n_rows=len(self.matrix.new_empty(self.n_rows)[rows]))

    def total(self) -> Tensor:
        """Sum over rows, (k, k)."""
        return self.matrix * self.n_rows

    def inner(self, matrix: Tensor) -> Tensor:
        """tr(C_i M) for each row, (rows,)."""
        return (self.matrix * matrix).sum().expand(self.n_rows)

    def quadratic(self, x: Tensor) -> Tensor:
        """x_i' C_i x_i, (rows,), for one x (rows, k) of each row."""
        return ((x @ self.matrix) * x).sum(1)

    def quadratics(self, x: Tensor) -> Tensor:
        """x_l' C_i x_l of each x (l, k) with each row, (l, rows) or what broadcasts to it."""
        return ((x @ self.matrix) * x).sum(1, keepdim=True)

    def moved(self, linear: Tensor) -> Common:
        """F C F'."""
        return replace(self, matrix=linear @ self.matrix @ linear.T)

    def spread(self, noise: Tensor) -> Tensor:
        """Standard Normal draws (rows, k) turned into draws with these covariances."""
        return noise @ root(self.matrix).T

    def packed(self) -> Tensor:
        """Lower triangles, (rows, p) or what broadcasts to it."""
        return pack(self.matrix)[None]


@dataclass(frozen=True)
class Eigenbasis:
    """`C_j = basis diag(1 / (w_j eig + 1)) basis'` with `w_j = 1 / sigma_j^2`."""

    basis: Tensor  # (k, k)
    eig: Tensor  # (k,)
    sigma: Tensor  # (rows,)

    @property
    def diagonal(self) -> Tensor:
        """Variances in the basis, (rows, k)."""
        return 1 / (self.eig / self.sigma.double().square()[:, None] + 1)

    def under(self, sigma: Tensor) -> Eigenbasis:
        """The covariances under another noise."""
        return replace(self, sigma=sigma)

    def diagonals(self) -> Tensor:
        """Variances, (rows, k)."""
        return self.diagonal @ self.basis.square().T

    def at(self, rows: Tensor | slice) -> Eigenbasis:
        """The covariances of some rows: a boolean mask, positions or a slice."""
        return replace(self, sigma=self.sigma[rows])

    def total(self) -> Tensor:
        """Sum over rows, (k, k)."""
        return (self.basis * self.diagonal.sum(0)) @ self.basis.T

    def inner(self, matrix: Tensor) -> Tensor:
        """tr(C_j M) for each row, (rows,)."""
        return self.diagonal @ ((matrix @ self.basis) * self.basis).sum(0)

    def quadratic(self, x: Tensor) -> Tensor:
        """x_j' C_j x_j, (rows,), for one x (rows, k) of each row."""
        return (self.diagonal * (x @ self.basis).square()).sum(1)

    def quadratics(self, x: Tensor) -> Tensor:
        """x_l' C_j x_l of each x (l, k) with each row, (l, rows)."""
        return (x @ self.basis).square() @ self.diagonal.T

    def moved(self, linear: Tensor) -> Eigenbasis:
        """F C F'."""
        return replace(self, basis=linear @ self.basis)

    def spread(self, noise: Tensor) -> Tensor:
        """Standard Normal draws (rows, k) turned into draws with these covariances."""
        return (self.diagonal.sqrt() * noise) @ self.basis.T

    def log_mean(self) -> Tensor:
        """A matrix in the basis of all rows, (k, k), whose log determinant is the mean of theirs."""
        return (self.basis * self.diagonal.log().mean(0).exp()) @ self.basis.T

    def packed(self) -> Tensor:
        """Lower triangles, (rows, p)."""
        return torch.cat([pack((self.basis * d[:, None]) @ self.basis.T) for d in self.diagonal.split(ROWS_PER_BLOCK)])


@dataclass(frozen=True)
class Packed:
    """A covariance of its own for each row."""

    values: Tensor  # (rows, p): packed lower triangles

    def diagonals(self) -> Tensor:
        """Variances, (rows, k)."""
        return diagonal(self.values)

    def at(self, rows: Tensor | slice) -> Packed:
        """The covariances of some rows: a boolean mask, positions or a slice."""
        return Packed(self.values[rows])

    def total(self) -> Tensor:
        """Sum over rows, (k, k) in float64."""
        return unpack(self.values.sum(0, dtype=torch.float64))

    def inner(self, matrix: Tensor) -> Tensor:
        """tr(C_i M) for each row, (rows,) in the dtype of `matrix`."""
        return self.values.to(matrix.dtype) @ (pack(matrix) * doubled(len(matrix), matrix))

    def quadratic(self, x: Tensor) -> Tensor:
        """x_i' C_i x_i, (rows,), for one x (rows, k) of each row."""
        return (outer(x) * doubled(x.shape[1], x) * self.values).sum(1)

    def quadratics(self, x: Tensor) -> Tensor:
        """x_l' C_i x_l of each x (l, k) with each row, (l, rows)."""
        x = x.to(self.values.dtype)
        return (outer(x) * doubled(x.shape[1], x)) @ self.values.T

    def moved(self, linear: Tensor) -> Packed:
        """F C F'."""
        parts = [congruent(linear, part.to(linear.dtype)) for part in self.values.split(ROWS_PER_BLOCK)]
        return Packed(torch.cat(parts).to(self.values.dtype))

    def spread(self, noise: Tensor) -> Tensor:
        """Standard Normal draws (rows, k) turned into draws with these covariances."""
        return (root(unpack(self.values.to(noise.dtype))) @ noise[..., None])[..., 0]

    def packed(self) -> Tensor:
        """Lower triangles, (rows, p)."""
        return self.values


@dataclass(frozen=True)
class PackedUnderNoise(Packed):
    """`C_j = (prior^-1 + w_j H_j)^-1` with `w_j = 1 / sigma_j^2`, a matrix H_j of its own for each row."""

    sigma: Tensor  # (rows,)
    prior: Tensor  # (k, k)

    def at(self, rows: Tensor | slice) -> PackedUnderNoise:
        """The covariances of some rows: a boolean mask, positions or a slice."""
        return replace(self, values=self.values[rows], sigma=self.sigma[rows])

    def moved(self, linear: Tensor) -> PackedUnderNoise:
        """F C F'."""
        return replace(self, values=super().moved(linear).values, prior=linear @ self.prior @ linear.T)

    def under(self, sigma: Tensor) -> PackedUnderNoise:
        """The covariances under another noise."""
        if torch.equal(sigma, self.sigma):
            return self
        ratio = (self.sigma.double() / sigma.double()).square()
        precision = torch.linalg.inv(self.prior)
        parts = [
            pack(torch.linalg.inv(torch.lerp(precision, torch.linalg.inv(unpack(values.double())), r[:, None, None])))
            for values, r in zip(self.values.split(ROWS_PER_BLOCK), ratio.split(ROWS_PER_BLOCK), strict=True)
        ]
        return replace(self, values=torch.cat(parts).to(self.values.dtype), sigma=sigma)


if TYPE_CHECKING:
    from .recomputed import Recomputed

    Covariances: TypeAlias = Common | Eigenbasis | Packed | Recomputed


def product_variance(cells: Covariances, genes: Covariances) -> Tensor:
    """tr(S_AA T_BB) of every cell with every gene, (cells, genes) or what broadcasts to it."""
    if isinstance(cells, Common):
        return genes.inner(_inner_block(cells.matrix))[None]
    if isinstance(cells, Eigenbasis) and isinstance(genes, Eigenbasis):
        return cells.diagonal @ _overlap(cells, genes) @ genes.diagonal.T
    left = cells.packed()
    k = unpack(left[:1]).shape[-1]
    return (left * (doubled(k, left) * _inside(k, left))) @ genes.packed().to(left.dtype).T


def product_variance_of_pairs(cells: Covariances, genes: Covariances) -> Tensor:
    """tr(S_AA T_BB) of each cell with the gene in the same row, (rows,)."""
    if isinstance(cells, Common):
        return genes.inner(_inner_block(cells.matrix))
    if isinstance(cells, Eigenbasis) and isinstance(genes, Eigenbasis):
        return ((cells.diagonal @ _overlap(cells, genes)) * genes.diagonal).sum(1)
    left = cells.packed()
    k = unpack(left[:1]).shape[-1]
    return (left * genes.packed() * (doubled(k, left) * _inside(k, left))).sum(1)


def _overlap(cells: Eigenbasis, genes: Eigenbasis) -> Tensor:
    """tr(S_AA T_BB) of each basis vector of S with each of T, (k, k)."""
    return (cells.basis[1:].T @ genes.basis[1:]).square()


def _inner_block(matrix: Tensor) -> Tensor:
    inner = matrix.clone()
    inner[0], inner[:, 0] = 0, 0
    return inner


def _inside(k: int, like: Tensor) -> Tensor:
    """Packed positions off the first row and column, as ones."""
    return pack(_inner_block(like.new_ones(k, k)))
