r"""Gauge moves: changes of (a, A), (b, B) and mu that leave every eta as it is.

.. math::

    (a_i, A_i) \to F_\mathrm{c} (a_i, A_i) + \delta_\mathrm{c}, \qquad
    (b_j, B_j) \to F_\mathrm{g} (b_j, B_j) + \delta_\mathrm{g}, \qquad \mu \to \mu + \delta_\mu

Three kinds of move generate them all: a rotation (any invertible matrix between A and B), a translation of A or B whose
inner products go into b or a, and a constant moved between mu, a and b. Nothing else in the package multiplies factors
by a matrix. With covariates zeta, rows are (a, zeta, A) and (b, beta, B), and a fourth moves what zeta explains of (a,
A) to beta; zeta itself no move changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from ..linalg.rows import rows_times
from ..model import Gaussian

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior

Q = TypeVar("Q", bound="Posterior")


@dataclass(frozen=True)
class Move:
    """One gauge move, in float64."""

    cell_map: Tensor  # F_c (r+1, r+1)
    cell_shift: Tensor  # delta_c (r+1,)
    gene_map: Tensor  # F_g (r+1, r+1)
    gene_shift: Tensor  # delta_g (r+1,)
    mu_shift: Tensor  # ()

    def then(self, other: Move) -> Move:
        """Move that is this one followed by `other`."""
        return Move(
            other.cell_map @ self.cell_map,
            other.cell_map @ self.cell_shift + other.cell_shift,
            other.gene_map @ self.gene_map,
            other.gene_map @ self.gene_shift + other.gene_shift,
            self.mu_shift + other.mu_shift,
        )

    def cells(self, mean: Tensor) -> Tensor:
        """Rows (a, A) after the move."""
        return rows_times(mean, self.cell_map.T, self.cell_shift)

    def genes(self, mean: Tensor) -> Tensor:
        """Rows (b, B) after the move."""
        return rows_times(mean, self.gene_map.T, self.gene_shift)

    def cell_cov(self, cov: Tensor) -> Tensor:
        """Covariance of (a, A) after the move."""
        return self.cell_map @ cov @ self.cell_map.T

    def cell_moments(self) -> Tensor:
        """The move as a linear map of x = (1, a, A), (r+2, r+2)."""
        return _linear(self.cell_map, self.cell_shift)

    def gene_moments(self) -> Tensor:
        """The move as a linear map of xi = (1, b, B), (r+2, r+2)."""
        return _linear(self.gene_map, self.gene_shift)

    def posterior(self, q: Q) -> Q:
        """q and its prior after the move: no prediction changes."""
        return replace(
            q,
            mu=q.mu + float(self.mu_shift),
            cell_mean=self.cells(q.cell_mean),
            cell_cov=q.cell_cov.moved(self.cell_map),
            gene_mean=self.genes(q.gene_mean),
            gene_cov=q.gene_cov.moved(self.gene_map),
            cell_prior=Gaussian(self.cells(q.cell_prior.mean[None])[0], self.cell_cov(q.cell_prior.cov)),
            gene_prior=Gaussian(
                self.genes(q.gene_prior.mean[None])[0], self.gene_map @ q.gene_prior.cov @ self.gene_map.T
            ),
        )


def _linear(matrix: Tensor, shift: Tensor) -> Tensor:
    linear = torch.eye(len(shift) + 1, dtype=matrix.dtype, device=matrix.device)
    linear[1:, 0] = shift
    linear[1:, 1:] = matrix
    return linear


def identity(n_factors: int, device: torch.device) -> Move:
    """The move that does nothing."""
    eye = torch.eye(n_factors + 1, dtype=torch.float64, device=device)
    zero = torch.zeros(n_factors + 1, dtype=torch.float64, device=device)
    return Move(eye, zero, eye, zero, zero[0])


def rotate(rotation: Tensor, n_known: int = 0) -> Move:
    """`A -> A R`, `B -> B R^-T`; the covariates before them stay."""
    move = identity(n_known + len(rotation), rotation.device)
    cell_map, gene_map = move.cell_map.clone(), move.gene_map.clone()
    first = 1 + n_known
    cell_map[first:, first:] = rotation.T
    gene_map[first:, first:] = torch.linalg.inv(rotation)
    return replace(move, cell_map=cell_map, gene_map=gene_map)


def translate_cells(shift: Tensor, n_known: int = 0) -> Move:
    """`A_i -> A_i - delta`, `b_j -> b_j + delta . B_j`; the covariates before them stay."""
    move, shift = identity(n_known + len(shift), shift.device), _behind_zeros(1 + n_known, shift)
    gene_map = move.gene_map.clone()
    gene_map[0] += shift
    return replace(move, cell_shift=-shift, gene_map=gene_map)


def translate_genes(shift: Tensor, n_known: int = 0) -> Move:
    """`B_j -> B_j - delta`, `a_i -> a_i + A_i . delta`; the coefficients before them stay."""
    move, shift = identity(n_known + len(shift), shift.device), _behind_zeros(1 + n_known, shift)
    cell_map = move.cell_map.clone()
    cell_map[0] += shift
    return replace(move, gene_shift=-shift, cell_map=cell_map)


def absorb(slopes: Tensor) -> Move:
    """`(a_i, A_i) -> (a_i, A_i) - C zeta_i`, `beta_j -> beta_j + C' v_j`: what covariates explain, C (r+1, p)."""
    p = slopes.shape[1]
    move = identity(p + len(slopes) - 1, slopes.device)
    cell_map, gene_map, gene_shift = move.cell_map.clone(), move.gene_map.clone(), move.gene_shift.clone()
    cell_map[0, 1 : 1 + p], cell_map[1 + p :, 1 : 1 + p] = -slopes[0], -slopes[1:]
    gene_map[1 : 1 + p, 1 + p :] = slopes[1:].T
    gene_shift[1 : 1 + p] = slopes[0]
    return replace(move, cell_map=cell_map, gene_map=gene_map, gene_shift=gene_shift)


def shift_constants(from_cells: Tensor, from_genes: Tensor, n_factors: int) -> Move:
    """`a_i -> a_i - delta_a`, `b_j -> b_j - delta_b`, `mu -> mu + delta_a + delta_b`."""
    move = identity(n_factors, from_cells.device)
    first = torch.zeros_like(move.cell_shift)
    first[0] = 1
    return replace(
        move,
        cell_shift=-from_cells * first,
        gene_shift=-from_genes * first,
        mu_shift=from_cells + from_genes,
    )


def _behind_zeros(n_zeros: int, vector: Tensor) -> Tensor:
    return torch.cat([vector.new_zeros(n_zeros), vector])


def balance(cell_moment: Tensor, gene_moment: Tensor, n_known: int = 0) -> Move:
    """The rotation behind `n_known` covariates that makes `mean E[A A'] = I` and `sum E[B B']` diagonal and decreasing.

    With kappa_A = 1 and one learned kappa_B per factor this is the rotation of highest ELBO. Eigenvectors have no sign
    of their own: each factor takes that of the old one which it holds most of, so that it stays where it was.
    """
    root = torch.linalg.cholesky(cell_moment)
    _, vectors = torch.linalg.eigh(root.T @ gene_moment @ root)
    rotation = torch.linalg.solve_triangular(root.T, vectors.flip(1), upper=True)
    largest = rotation.gather(0, rotation.abs().argmax(0, keepdim=True))
    return rotate(torch.where(largest < 0, -rotation, rotation), n_known)
