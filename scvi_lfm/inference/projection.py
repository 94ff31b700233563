"""The local step alone: new cells given a finished posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..posterior.posterior import extend
from .natural_gradient import cell_covariance, cell_means, cell_precision
from .state import weighted_gene_moment

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import CellMatrix
    from ..posterior import Posterior

CELLS_PER_BLOCK = 2048


def project_cells(matrix: CellMatrix, q: Posterior) -> Posterior:
    """The posterior with the means of (a, A) of the cells of `matrix`, whose columns are the genes of q."""
    device = q.gene_mean.device
    weights, moment, precision = _information(q)
    mu = torch.as_tensor(q.mu, dtype=torch.float64, device=device)
    means = []
    for start in range(0, matrix.shape[0], CELLS_PER_BLOCK):
        batch = matrix.batch(slice(start, start + CELLS_PER_BLOCK), device)
        projected = batch.times_genes(weights[:, None] * extend(q.gene_mean))
        means.append(cell_means(mu, projected, moment, precision, q.cell_prior))
    return replace(q, cell_mean=torch.cat(means))


def with_cell_covariance(q: Posterior, family: str) -> Posterior:
    """The posterior with S of cells that are observed at the genes of q alone."""
    _, _, precision = _information(q)
    return replace(q, cell_cov=cell_covariance(precision, family))


def _information(q: Posterior) -> tuple[Tensor, Tensor, Tensor]:
    weights = q.sigma.square().reciprocal()
    moment = weighted_gene_moment(q.gene_mean, q.gene_basis, q.gene_diagonal(q.sigma), weights)
    return weights, moment, cell_precision(moment, q.cell_prior)
