"""Cells given finished genes: the local step of the likelihood and the pattern of data that a posterior has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .counts.projection import project_counts
from .normal.projection import project_cells
from .observed.projection import project_observed

if TYPE_CHECKING:
    from ..data import CellMatrix
    from ..posterior import CountPosterior, NormalPosterior


def place_cells(
    matrix: CellMatrix, posterior: NormalPosterior | CountPosterior, family: str, *, all_genes: bool
) -> NormalPosterior | CountPosterior:
    """The posterior with (a, A) of the cells of `matrix`, whose columns are the genes of `posterior`.

    `all_genes` tells whether these are all that were fitted.
    """
    q: Any = posterior  # its likelihood and covariances say of which of the two it is
    if not q.likelihood.linear:
        return project_counts(matrix, q, family)
    if q.gene_cov.by_row:
        return project_observed(matrix, q, family)
    # with fewer genes cells know less; mean field's covariance belongs to the gauge of the fit
    return project_cells(matrix, q, family, keeps_cov=family == "mean_field" and all_genes)
