"""Inference: the closed-form engine here, the Pyro engine in `pyro_engine`, which imports Pyro."""

from .loop import fit_natural_gradient
from .options import FitOptions, FitResult
from .projection import project_cells, with_cell_covariance

__all__ = ["FitOptions", "FitResult", "fit_natural_gradient", "project_cells", "with_cell_covariance"]
