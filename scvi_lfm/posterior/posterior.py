r"""The posterior: a frozen record of q, with its prior and what the likelihood needs.

Rows are extended vectors: `u = (1, A_i)` and `v = (1, B_j)` meet the blocks `(a_i, A_i)` and `(b_j, B_j)`:

.. math:: \eta_{ij} = \mu + (a_i, A_i) \cdot v_j + b_j = \mu + (b_j, B_j) \cdot u_i + a_i

and counts add :math:`\log s_i`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from ..model import Gaussian
    from .covariances import Common, Covariances, Eigenbasis, Packed, PackedUnderNoise
    from .recomputed import Recomputed


@dataclass(frozen=True)
class NormalNoise:
    """What the Normal likelihood, or the Student t, needs besides eta."""

    sigma: Tensor  # (m,): noise of the fit
    predictive: Tensor  # (m,): noise for predicting and scoring, s_j
    cell: Tensor | None = None  # (n,): sigma_i, by which both are multiplied; None where it is 1 for all
    df: float | None = None  # degrees of freedom of the Student t, whose scale sigma then is; None: the Normal

    def at_genes(self, rows: Tensor) -> NormalNoise:
        """That of some genes."""
        return replace(self, sigma=self.sigma[rows], predictive=self.predictive[rows])

    def of_pairs(self, cells: Tensor, genes: Tensor) -> Tensor:
        """Standard deviation for predicting cell `cells[k]` with gene `genes[k]`, (pairs,)."""
        return self.predictive[genes] if self.cell is None else self.predictive[genes] * self.cell[cells]

    def for_cells(self, per_gene: Tensor, cells: slice) -> Tensor:
        """Variances (m,) of genes in some cells, (m,) or (cells, m)."""
        return per_gene if self.cell is None else per_gene * self.cell[cells, None].to(per_gene.dtype).square()

    def rounded(self) -> NormalNoise:
        """With values as float32 storage holds them; a shared sigma is stored in float64."""
        varies = (self.sigma != self.sigma[0]).any()
        return replace(
            self,
            sigma=self.sigma.float().double() if varies else self.sigma,
            predictive=self.predictive.float().double(),
            cell=None if self.cell is None else self.cell.float().double(),
        )


@dataclass(frozen=True)
class CountNoise:
    """What a count likelihood needs besides eta."""

    likelihood: str  # a name of `model.likelihoods.COUNTS`
    dispersion: Tensor  # (m,): 1 / theta_j, zero where there is none
    log_size: Tensor  # (n,): log size factors

    def at_genes(self, rows: Tensor) -> CountNoise:
        """That of some genes."""
        return replace(self, dispersion=self.dispersion[rows])

    def rounded(self) -> CountNoise:
        """With values as float32 storage holds them."""
        return replace(self, dispersion=self.dispersion.float().double(), log_size=self.log_size.float().double())


@dataclass(frozen=True)
class Posterior:
    """q(mu) q(a, A) q(b, B), with the prior in the same gauge. Small matrices are float64.

    With p covariates, rows are (a, z, A) and (b, beta, B), in which z has no variance: r+1 is then 1+p+r throughout.
    """

    mu: float
    cell_mean: Tensor  # (n, r+1): (a_i, A_i)
    cell_cov: Covariances  # S_i
    gene_mean: Tensor  # (m, r+1): (b_j, B_j)
    gene_cov: Covariances  # T_j, under the noise for predicting
    noise: NormalNoise | CountNoise
    cell_prior: Gaussian
    gene_prior: Gaussian
    n_known: int = 0  # number of covariates p

    @property
    def n_factors(self) -> int:
        """Number of factors, those switched off included."""
        return self.gene_mean.shape[1] - 1 - self.n_known

    @property
    def cell_factors(self) -> Tensor:
        """Means of A, (n, r)."""
        return self.cell_mean[:, 1 + self.n_known :]

    @property
    def gene_factors(self) -> Tensor:
        """Means of B, (m, r)."""
        return self.gene_mean[:, 1 + self.n_known :]

    def without_known(self, row: Tensor) -> Tensor:
        """A row (a, z, A) at the average of the covariates, which is zero."""
        row = row.clone()
        row[..., 1 : 1 + self.n_known] = 0
        return row

    def at_genes(self, rows: Tensor) -> Self:
        """The posterior of some genes alone, with all cells."""
        return replace(
            self, gene_mean=self.gene_mean[rows], gene_cov=self.gene_cov.at(rows), noise=self.noise.at_genes(rows)
        )


@dataclass(frozen=True)
class NormalPosterior(Posterior):
    """The posterior under the Normal likelihood or the Student t: one S or eigenbasis for all cells, one for all genes.

    Where some entries were not data, every cell and gene has a covariance of its own.
    """

    cell_cov: Common | Eigenbasis | Packed
    gene_cov: Eigenbasis | PackedUnderNoise
    noise: NormalNoise

    def rounded(self, level: float = 0.0) -> NormalPosterior:
        """The posterior as storage holds it: per-gene values in float32, mu on top of a level of the values."""
        noise = self.noise.rounded()
        gene_mean = self.gene_mean.float().double()
        gene_cov, mu = self.gene_cov.under(noise.predictive), (self.mu + level) - level
        return replace(self, mu=mu, gene_mean=gene_mean, noise=noise, gene_cov=gene_cov)


@dataclass(frozen=True)
class CountPosterior(Posterior):
    """The posterior under a count likelihood, in which eta is the log of a rate: covariances differ by row."""

    cell_cov: Packed | Recomputed
    gene_cov: Packed
    noise: CountNoise

    def rounded(self) -> CountPosterior:
        """The posterior with its per-gene values as float32 storage holds them."""
        return replace(self, gene_mean=self.gene_mean.float().double(), noise=self.noise.rounded())


def extend(block: Tensor) -> Tensor:
    """`(1, A)` from `(a, A)`, or `(1, B)` from `(b, B)`: the first column becomes ones."""
    return torch.cat([torch.ones_like(block[:, :1]), block[:, 1:]], dim=1)
