"""The local step alone: new cells given a finished posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..._memory import naming_memory
from ...data import Scaled
from ...data.blocks import Blocks
from ...model.priors import with_known
from ...posterior.posterior import extend
from .cell_noise import NoisyCellStep, cell_basis
from .natural_gradient import cell_covariance, cell_information, cell_means, cell_precision
from .state import weighted_gene_moment
from .sweep import insert_known

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ...linalg.covariances import Covariance
    from ...posterior import NormalPosterior


@naming_memory("place the cells", "Place fewer cells at a time")
def project_cells(matrix: CellMatrix, q: NormalPosterior, family: str, *, keeps_cov: bool) -> NormalPosterior:
    """The posterior with (a, A) of the cells of `matrix`, whose columns are the genes of q.

    S is that of q if it is kept, else that of cells which are observed at these genes alone.
    """
    step = (_Projection if q.noise.cell is None else _NoisyProjection)(q)
    cov = q.cell_cov if keeps_cov else step.covariance(family)
    return step.cells(Blocks.of_cells(matrix, None, q.gene_mean.device), cov)


class _Projection:
    """The local step given finished genes, under noise that all cells share."""

    def __init__(self, q: NormalPosterior) -> None:
        self._q: Any = q  # the form of its covariances follows from the noise
        sigma = q.noise.sigma
        self._weights = sigma.square().reciprocal()
        cov: Any = self._q.gene_cov.under(sigma)
        self._moment = weighted_gene_moment(q.gene_mean, cov.basis, cov.diagonal, self._weights)
        self._mu = torch.as_tensor(q.mu, dtype=torch.float64, device=sigma.device)
        self._prior = q.cell_prior.given_known(q.n_known)

    def cells(self, blocks: Blocks, cov: Any) -> NormalPosterior:
        """The posterior with these cells, whose covariances have the form of `cov`."""
        q, prior, precision = self._q, self._prior, cell_precision(self._moment, self._prior)
        weighted = Scaled(self._weights[:, None] * extend(q.gene_mean))

        def means(batch: Batch) -> Tensor:
            mean = cell_means(self._mu, batch.times_genes(weighted), self._moment, precision, prior, batch.known)
            return insert_known(mean, batch.known)

        mean = torch.cat(list(blocks.each(means)))
        return replace(q, cell_mean=mean, cell_cov=replace(cov, n_rows=len(mean)))

    def covariance(self, family: str) -> Covariance:
        """S that follows from the genes."""
        matrix = cell_covariance(cell_precision(self._moment, self._prior), family)
        return replace(self._q.cell_cov, matrix=with_known(matrix, self._q.n_known))


class _NoisyProjection(_Projection):
    """The local step where noise differs by cell: sigma_i of each is found along with its posterior."""

    def cells(self, blocks: Blocks, cov: Any) -> NormalPosterior:
        """The posterior with these cells and their noise, whose covariances have the basis of `cov`."""
        q, basis, no_var = self._q, (cov.basis, cov.eig), torch.zeros_like(self._mu)
        step = NoisyCellStep(self._mu, no_var, q.gene_mean, self._weights, self._moment, self._prior, basis)
        found = list(blocks.each(step))
        sigma = torch.cat([cells.covs.sigma for cells in found])
        mean, noise = torch.cat([cells.mean for cells in found]), replace(q.noise, cell=sigma)
        return replace(q, cell_mean=mean, cell_cov=cov.under(sigma), noise=noise)

    def covariance(self, family: str) -> Covariance:
        """Basis of all S_i that follows from the genes."""
        prior = self._prior
        basis, eig = cell_basis(cell_information(self._moment, len(prior.mean)), prior, family)
        return replace(self._q.cell_cov, basis=basis, eig=eig)
