"""The local step alone: new cells given a finished posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from ..._memory import naming_memory
from ...data import Scaled
from ...data.blocks import Blocks
from ...linalg.covariances import Eigenbasis
from ...model.priors import with_known
from ...posterior.posterior import extend
from .cell_noise import NoisyCellStep, cell_basis
from .natural_gradient import cell_covariance, cell_information, cell_means, cell_precision
from .state import weighted_gene_moment
from .sweep import insert_known

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ...linalg.covariances import Common
    from ...posterior import NormalPosterior


@naming_memory("place the cells", "Place fewer cells at a time")
def project_cells(matrix: CellMatrix, q: NormalPosterior) -> NormalPosterior:
    """The posterior with the means of (a, A) of the cells of `matrix`, whose columns are the genes of q."""
    device = q.gene_mean.device
    if isinstance(q.cell_cov, Eigenbasis):
        return _project_noisy_cells(matrix, q, q.cell_cov)
    cov = cast("Common", q.cell_cov)
    weights, moment, precision = _information(q)
    prior = q.cell_prior.given_known(q.n_known)
    mu = torch.as_tensor(q.mu, dtype=torch.float64, device=device)
    weighted = Scaled(weights[:, None] * extend(q.gene_mean))

    def means(batch: Batch) -> Tensor:
        mean = cell_means(mu, batch.times_genes(weighted), moment, precision, prior, batch.known)
        return insert_known(mean, batch.known)

    mean = torch.cat(list(Blocks.of_cells(matrix, None, device).each(means)))
    return replace(q, cell_mean=mean, cell_cov=replace(cov, n_rows=len(mean)))


def _project_noisy_cells(matrix: CellMatrix, q: NormalPosterior, cov: Eigenbasis) -> NormalPosterior:
    """The same where noise differs by cell: sigma_i of each is found along with its posterior."""
    weights, moment, _ = _information(q)
    mu = torch.as_tensor(q.mu, dtype=torch.float64, device=weights.device)
    step = NoisyCellStep(mu, torch.zeros_like(mu), q.gene_mean, weights, moment, q.cell_prior, (cov.basis, cov.eig))
    found = list(Blocks.of_cells(matrix, None, weights.device).each(step))
    sigma = torch.cat([cells.cov.sigma for cells in found])
    noise = replace(q.noise, cell=sigma)
    return replace(q, cell_mean=torch.cat([cells.mean for cells in found]), cell_cov=cov.under(sigma), noise=noise)


@naming_memory("place the cells", "Place fewer cells at a time")
def with_cell_covariance(q: NormalPosterior, family: str) -> NormalPosterior:
    """The posterior with S of cells that are observed at the genes of q alone."""
    _, moment, precision = _information(q)
    if isinstance(q.cell_cov, Eigenbasis):
        basis, eig = cell_basis(cell_information(moment, len(q.cell_prior.mean)), q.cell_prior, family)
        return replace(q, cell_cov=replace(q.cell_cov, basis=basis, eig=eig))
    matrix = with_known(cell_covariance(precision, family), q.n_known)
    return replace(q, cell_cov=replace(cast("Common", q.cell_cov), matrix=matrix))


def _information(q: NormalPosterior) -> tuple[Tensor, Tensor, Tensor]:
    weights = q.noise.sigma.square().reciprocal()
    gene_cov = cast("Eigenbasis", q.gene_cov).under(q.noise.sigma)
    moment = weighted_gene_moment(q.gene_mean, gene_cov.basis, gene_cov.diagonal, weights)
    return weights, moment, cell_precision(moment, q.cell_prior.given_known(q.n_known))
