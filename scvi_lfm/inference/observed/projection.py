"""The local step alone: cells given finished genes, from their observed entries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..._memory import naming_memory
from ...data.blocks import Blocks
from ...linalg.covariances import Packed
from .centre import centred
from .state import Rows
from .steps import CellStep

if TYPE_CHECKING:
    from ...data import CellMatrix
    from ...posterior import NormalPosterior


@naming_memory("place the cells", "Place fewer cells at a time")
def project_observed(matrix: CellMatrix, q: NormalPosterior, family: str) -> NormalPosterior:
    """The posterior with (a, A) of the cells of `matrix`, whose columns are the genes of q, from its prior."""
    sigma = q.noise.sigma
    matrix, centre = centred(matrix, q.mu)
    mu = torch.as_tensor(q.mu - centre, dtype=torch.float64, device=q.gene_mean.device)
    step = CellStep(
        mu, q.gene_mean, q.gene_cov.under(sigma).packed(), sigma.square().reciprocal(), q.cell_prior, family
    )
    cells = Rows.joined(list(Blocks.of_cells(matrix, None, q.gene_mean.device).each(step)))
    return replace(q, cell_mean=cells.mean, cell_cov=Packed(cells.cov.float()))
