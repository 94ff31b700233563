r"""The posterior: a frozen record of q, with its prior and what the likelihood needs.

Rows are extended vectors: `u = (1, A_i)` and `v = (1, B_j)` meet the blocks `(a_i, A_i)` and `(b_j, B_j)`:

.. math:: \eta_{ij} = \mu + (a_i, A_i) \cdot v_j + b_j = \mu + (b_j, B_j) \cdot u_i + a_i

and counts add :math:`\log s_i`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import LIKELIHOODS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

    from torch import Tensor

    from ..linalg.covariances import Covariance, Eigenbasis, OneBasis, Packed, PackedUnderNoise
    from ..model import Gaussian
    from ..model.likelihoods import Law, Likelihood
    from ..model.noise import CountNoise, NormalNoise


@dataclass(frozen=True)
class Moments:
    """Mean and variance of eta."""

    mean: Tensor
    var: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of several parts, in order."""
        means, variances = zip(*((part.mean, part.var) for part in parts), strict=True)
        return cls(torch.cat(means), torch.cat(variances))


@dataclass(frozen=True)
class Posterior:
    """q(mu) q(a, A) q(b, B), with the prior in the same gauge. Small matrices are float64.

    With p covariates, rows are (a, zeta, A) and (b, beta, B), in which zeta has no variance: r+1 is then 1+p+r
    throughout.
    """

    mu: float
    cell_mean: Tensor  # (n, r+1): (a_i, A_i)
    cell_cov: Covariance  # S_i
    gene_mean: Tensor  # (m, r+1): (b_j, B_j)
    gene_cov: Covariance  # T_j, under the noise for predicting
    noise: NormalNoise | CountNoise
    cell_prior: Gaussian
    gene_prior: Gaussian
    n_known: int = 0  # number of covariates p

    @property
    def likelihood(self) -> Likelihood:
        """Likelihood of values given eta."""
        return LIKELIHOODS[self.noise.likelihood]

    def law(self, eta: Moments, cells: Tensor, genes: Tensor) -> Law:
        """Laws of the values of cell `cells[k]` with gene `genes[k]`, from moments of eta (pairs,)."""
        parameters = (parameter.to(eta.mean.dtype) for parameter in self.noise.of_pairs(cells, genes))
        return self.likelihood.law(eta.mean, eta.var, *parameters)

    def law_in_cells(self, eta: Moments) -> Law:
        """Laws of the values of all cells with all genes, from moments of eta, (m,) or (cells, m)."""
        return self.likelihood.law(eta.mean, eta.var, *self.noise.of_cells(slice(None), eta.mean.dtype))

    def law_on_average(self) -> Law:
        """Laws of the values of the genes in the average cell, (m,)."""
        eta = self.population()
        return self.likelihood.law(eta.mean, eta.var, *self.noise.of_cells(None, eta.mean.dtype))

    def population(self) -> Moments:
        """Moments of each gene's expected eta over all cells like the fitted ones, whose size factors are 1, (m,).

        They follow from the prior of (a, A), which was learned from all fitted cells.
        """
        v = extend(self.gene_mean)
        mean = self.mu + self.gene_mean[:, 0] + v @ self.cell_prior.mean
        return Moments(mean, ((v @ self.cell_prior.cov) * v).sum(1))

    def expected_rates(self) -> Tensor:
        """Rates of the genes in the average cell of size factor one, where eta is the log of a rate, (m,)."""
        eta = self.population()
        return (eta.mean + 0.5 * eta.var).exp()

    def under_noise_of_fit(self) -> Self:
        """The posterior with T_j under the noise of the fit, in place of that for predicting."""
        return self

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
        """A row (a, zeta, A) at the average of the covariates, which is zero."""
        row = row.clone()
        row[..., 1 : 1 + self.n_known] = 0
        return row

    def with_log_size(self, log_size: Tensor) -> Self:
        """The posterior of cells of these size factors, where eta is the log of a rate."""
        noise: Any = self.noise
        return replace(self, noise=replace(noise, log_size=log_size))

    def at_genes(self, rows: Tensor) -> Self:
        """The posterior of some genes alone, with all cells."""
        return replace(
            self, gene_mean=self.gene_mean[rows], gene_cov=self.gene_cov.at(rows), noise=self.noise.at_genes(rows)
        )

    def at_cells(self, rows: Tensor | slice) -> Self:
        """The posterior of some cells alone, with all genes."""
        return replace(
            self, cell_mean=self.cell_mean[rows], cell_cov=self.cell_cov.at(rows), noise=self.noise.at_cells(rows)
        )


@dataclass(frozen=True)
class NormalPosterior(Posterior):
    """The posterior under the Normal likelihood or the Student t: one S or eigenbasis for all cells, one for all genes.

    Where some entries were not data, every cell and gene has a covariance of its own.
    """

    cell_cov: OneBasis | Packed
    gene_cov: Eigenbasis | PackedUnderNoise
    noise: NormalNoise

    def under_noise_of_fit(self) -> Self:
        """The posterior with T_j under sigma."""
        return replace(self, gene_cov=self.gene_cov.under(self.noise.sigma))

    def expected_values(self) -> Tensor:
        """Mean over the cells, or the average cell where there are none, of what is expected of each gene, (m,)."""
        expected = self.mu + self.gene_mean[:, 0]
        if not len(self.cell_mean):  # the average cell has zeros
            return expected
        return expected + extend(self.gene_mean) @ self.cell_mean.mean(0)

    def rounded(self, level: float = 0.0) -> NormalPosterior:
        """The posterior as storage holds it: per-gene values in float32, mu on top of a level of the values."""
        noise = self.noise.rounded()
        gene_mean = self.gene_mean.float().double()
        gene_cov, mu = self.gene_cov.under(noise.predictive), (self.mu + level) - level
        return replace(self, mu=mu, gene_mean=gene_mean, noise=noise, gene_cov=gene_cov)


@dataclass(frozen=True)
class CountPosterior(Posterior):
    """The posterior under a likelihood of Fisher weights, as those of counts and levels: covariances differ by row."""

    cell_cov: Covariance
    gene_cov: Packed
    noise: CountNoise

    def expected_values(self) -> Tensor:
        """Expected values of the genes in the average cell, of the size factors' mean, (m,)."""
        if not self.likelihood.has_rate:
            return self.law_on_average().mean()
        rates = self.expected_rates() * self.noise.log_size.exp().mean()
        return self.likelihood.mean(rates, self.noise.dispersion)

    @property
    def factor_shares(self) -> list[float]:
        """Share of each factor in the squares of all, in the stored gauge."""
        squares = self.cell_factors.square().sum(0)
        return (squares / squares.sum().clamp_min(1e-300)).tolist()

    def rounded(self) -> CountPosterior:
        """The posterior with its per-gene values as float32 storage holds them."""
        return replace(self, gene_mean=self.gene_mean.float().double(), noise=self.noise.rounded())


def extend(block: Tensor) -> Tensor:
    """`(1, A)` from `(a, A)`, or `(1, B)` from `(b, B)`: the first column becomes ones."""
    return torch.cat([torch.ones_like(block[:, :1]), block[:, 1:]], dim=1)
