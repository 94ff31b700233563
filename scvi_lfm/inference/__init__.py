"""Inference: the closed-form engine here, the Pyro engine in `pyro_engine`, which imports Pyro."""

from .counts.projection import project_counts
from .loop import fit_natural_gradient
from .options import FitOptions, FitResult
from .projection import project_cells, with_cell_covariance

__all__ = ["FitOptions", "FitResult", "fit_natural_gradient", "project_cells", "project_counts", "with_cell_covariance"]
