r"""The posterior: a frozen record of q, with its prior and noise.

Rows are extended vectors: `u = (1, A_i)` and `v = (1, B_j)` meet the blocks `(a_i, A_i)` and `(b_j, B_j)`:

.. math:: \eta_{ij} = \mu + (a_i, A_i) \cdot v_j + b_j = \mu + (b_j, B_j) \cdot u_i + a_i
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import Gaussian


@dataclass(frozen=True)
class Posterior:
    """q(mu) q(a, A) q(b, B), with the prior in the same gauge. Small matrices are float64.

    Every gene's covariance shares one basis: `T_j = basis diag(1 / (w_j eig + 1)) basis'` with `w_j = 1 / sigma_j^2`.
    """

    mu: float
    cell_mean: Tensor  # (n, r+1): (a_i, A_i)
    cell_cov: Tensor  # (r+1, r+1): S, the same for every cell
    gene_mean: Tensor  # (m, r+1): (b_j, B_j)
    gene_basis: Tensor  # (r+1, r+1)
    gene_eig: Tensor  # (r+1,)
    sigma: Tensor  # (m,): noise of the fit
    predictive_sigma: Tensor  # (m,): noise for predicting and scoring, s_j
    cell_prior: Gaussian
    gene_prior: Gaussian

    @property
    def n_factors(self) -> int:
        """Number of factors, those switched off included."""
        return self.cell_mean.shape[1] - 1

    def rounded(self) -> Posterior:
        """The posterior with its per-gene values as float32 storage holds them."""
        return replace(
            self,
            gene_mean=self.gene_mean.float().double(),
            sigma=self.sigma.float().double() if (self.sigma != self.sigma[0]).any() else self.sigma,
            predictive_sigma=self.predictive_sigma.float().double(),
        )

    def gene_diagonal(self, sigma: Tensor) -> Tensor:
        """Diagonal of each T_j in the shared basis under noise `sigma`, (m, r+1)."""
        return 1 / (self.gene_eig / sigma.double().square()[:, None] + 1)


def extend(block: Tensor) -> Tensor:
    """`(1, A)` from `(a, A)`, or `(1, B)` from `(b, B)`: the first column becomes ones."""
    return torch.cat([torch.ones_like(block[:, :1]), block[:, 1:]], dim=1)


def diagonal_of(basis: Tensor, diagonal: Tensor) -> Tensor:
    """Diagonals of `basis diag(d_j) basis'` for each row d_j, (m, r+1)."""
    return diagonal @ basis.square().T
