r"""Noise that differs by cell: `y_ij ~ Normal(eta_ij, sigma_i^2 sigma_j^2)`, in closed form.

.. math::

    S_i^{-1} &= P^{-1} + \omega_i \sum_j w_j E[v_j v_j'], \qquad \omega_i = 1 / \sigma_i^2 \\
    \sigma_i^2 &= \frac1m \sum_j w_j E (y_{ij} - \eta_{ij})^2

One eigenbasis serves all cells, and in it both equations are elementwise: they are iterated to their joint solution at
every visit, from the same start, so that nothing is kept of a cell and a new cell gets what a fitted one would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...data import Scaled
from ...linalg.covariances import Eigenbasis
from ...linalg.moments import one_first, without_columns
from ...posterior.posterior import extend
from .natural_gradient import CellBlock, cell_information
from .state import WeightedStatistics

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch
    from ...model import Gaussian
    from .state import NormalGlobals

# variances of a cell's noise over that of the typical cell: an empty cell must not take over, none be lost altogether
LEAST, LARGEST = 0.04, 1e4
# the error shrinks each time by about the share of a cell's entries that its own latents take up
ROUNDS = 30


@dataclass(frozen=True)
class NoisyCells(CellBlock):
    """q(a, A) and noise of the cells of a batch."""

    covs: Eigenbasis  # S_i; `covs.sigma` holds sigma_i

    @property
    def omega(self) -> Tensor:
        """1 / sigma_i^2, (batch,)."""
        return _omega(self.covs)

    def statistics(self, batch: Batch) -> WeightedStatistics:
        """Averages over the cells, with weights."""
        x = one_first(self.mean)
        omega, n = self.omega, batch.n_cells
        weighted_x = omega[:, None] * x
        xx, weighted = x.T @ x / n, weighted_x.T @ x / n
        basis, diagonal = self.covs.basis, self.covs.diagonal
        xx[1:, 1:] += (basis * diagonal.mean(0)) @ basis.T
        weighted[1:, 1:] += (basis * (omega @ diagonal / n)) @ basis.T
        yy = batch.squares_times_cells(omega) / n
        return WeightedStatistics(xx, batch.times_cells(weighted_x / n), yy, weighted, omega.log().mean())


def _omega(covs: Eigenbasis) -> Tensor:
    return covs.sigma.square().reciprocal()


def cell_basis(information: Tensor, prior: Gaussian, family: str) -> tuple[Tensor, Tensor]:
    """Basis and eigenvalues of `S_i = basis diag(1 / (omega_i eig + 1)) basis'`, for `sum_j w_j E[v_j v_j']`."""
    if family == "mean_field":
        own_var = 1 / torch.linalg.inv(prior.cov).diagonal()
        return torch.diag(own_var.sqrt()), own_var * information.diagonal()
    root = torch.linalg.cholesky(prior.cov)
    eig, vectors = torch.linalg.eigh(root.T @ information @ root)
    return root @ vectors, eig.clamp_min(0)


class NoisyCellStep:
    """The local step where noise differs by cell; what depends on the genes alone is computed once.

    Parameters
    ----------
    mu, mu_var
        Mean and variance of q(mu).
    gene_mean
        Means of (b, B), (m, r+1).
    precision
        w_j, (m,).
    moment
        `sum_j w_j E[xi_j xi_j']` with xi = (1, b, B), (r+2, r+2).
    prior
        Of (a, A).
    cov
        Basis and eigenvalues of the covariances, as :func:`cell_basis` gives them for the family.
    """

    def __init__(
        self,
        mu: Tensor,
        mu_var: Tensor,
        gene_mean: Tensor,
        precision: Tensor,
        moment: Tensor,
        prior: Gaussian,
        cov: tuple[Tensor, Tensor],
    ) -> None:
        self._mu, self._precision, self._cov = mu, precision, cov
        columns = torch.cat([extend(gene_mean), gene_mean[:, :1]], dim=1)
        self._weighted = Scaled(precision[:, None] * columns)  # w_j (1, B_j, b_j)
        inner = without_columns(moment[:2], 1)
        self._slope = mu * inner[0] + inner[1]
        self._intercept = moment[0, 0] * (mu.square() + mu_var) + 2 * mu * moment[0, 1] + moment[1, 1]
        information = cell_information(moment, len(prior.mean))
        self._basis, self._eig = cell_basis(information, prior, "row_block")
        self._offset = torch.linalg.solve(self._basis, prior.mean)
        # tr(sum_j w_j E[v_j v_j'] S_i) is the sum of these over omega_i eig + 1
        self._traces = ((information @ cov[0]) * cov[0]).sum(0)
        self._log_volume = torch.logdet(prior.cov) - 2 * torch.linalg.slogdet(cov[0]).logabsdet
        self._own = (torch.linalg.solve(prior.cov, cov[0]) * cov[0]).sum(0)

    @classmethod
    def of(cls, g: NormalGlobals, moment: Tensor, family: str) -> NoisyCellStep:
        """Local step under the current genes, with their `moment`."""
        prior = g.cell_prior
        basis = cell_basis(cell_information(moment, len(prior.mean)), prior, family)
        return cls(g.mu, g.mu_var, g.gene_mean, g.precision, moment, prior, basis)

    def __call__(self, batch: Batch) -> NoisyCells:
        """q(a, A) and sigma of the cells of a batch."""
        projected = batch.times_genes(self._weighted)
        target = (projected[:, :-1] - self._slope) @ self._basis
        data = batch.squares_times_genes(self._precision)
        fixed = data - 2 * (self._mu * projected[:, 0] + projected[:, -1]) + self._intercept
        omega = torch.ones_like(fixed)
        for _ in range(ROUNDS):
            _, squares = self._given(omega, target, fixed)
            omega = 1 / (squares / len(self._precision)).clamp(LEAST, LARGEST)
        coordinates, squares = self._given(omega, target, fixed)
        basis, eig = self._cov
        covs = Eigenbasis(basis, eig, omega.rsqrt())
        shrunk = covs.diagonal
        # twice the KL of q(a_i, A_i) from a prior with mean zero
        penalty = coordinates.square().sum(1) + shrunk @ self._own - len(eig) + self._log_volume - shrunk.log().sum(1)
        local = self._local_elbo(_omega(covs), squares, penalty)
        return NoisyCells(coordinates @ self._basis.T, covs, local)

    def _local_elbo(self, omega: Tensor, squares: Tensor, penalty: Tensor) -> Tensor:
        """Mean over cells of the ELBO terms that belong to a cell."""
        level = omega.log().mean() - math.log(2 * math.pi)
        noise = self._precision.log().sum() + len(self._precision) * level
        return 0.5 * (noise - (omega * squares + penalty).mean())

    def _given(self, omega: Tensor, target: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of the means in the basis, and expected squares, given the noise."""
        scale = omega[:, None]
        coordinates = (scale * target + self._offset) / (scale * self._eig + 1)
        spread = (1 / (scale * self._cov[1] + 1)) @ self._traces
        fitted = (coordinates * (coordinates * self._eig - 2 * target)).sum(1)
        return coordinates, fixed + fitted + spread
