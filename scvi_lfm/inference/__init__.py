"""Inference: the closed-form engine here, the Pyro engine in `pyro_engine`, which imports Pyro."""

from .counts.projection import project_counts
from .loop import fit_natural_gradient
from .masked.projection import project_observed
from .options import FitOptions, FitResult
from .projection import project_cells, with_cell_covariance

__all__ = [
    "FitOptions",
    "FitResult",
    "fit_natural_gradient",
    "project_cells",
    "project_counts",
    "project_observed",
    "with_cell_covariance",
]
