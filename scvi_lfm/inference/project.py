"""Cells given finished genes: the local step of the likelihood and the pattern of data that a posterior has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..linalg.covariances import PackedUnderNoise
from ..posterior import CountPosterior
from .counts.projection import project_counts
from .normal.projection import project_cells, with_cell_covariance
from .observed.projection import project_observed

if TYPE_CHECKING:
    from ..data import CellMatrix
    from ..posterior import NormalPosterior


def place_cells(
    matrix: CellMatrix, q: NormalPosterior | CountPosterior, family: str, *, all_genes: bool
) -> NormalPosterior | CountPosterior:
    """The posterior with (a, A) of the cells of `matrix`, whose columns are the genes of q.

    `all_genes` tells whether these are all that were fitted.
    """
    if isinstance(q, CountPosterior):
        return project_counts(matrix, q, family)
    if isinstance(q.gene_cov, PackedUnderNoise):
        return project_observed(matrix, q, family)
    # with fewer genes cells know less; mean field's covariance belongs to the gauge of the fit
    if family == "row_block" or not all_genes:
        q = with_cell_covariance(q, family)
    return project_cells(matrix, q)
