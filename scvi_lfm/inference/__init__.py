"""Inference: one loop, two engines."""

from .loop import fit_natural_gradient
from .options import FitOptions, FitResult
from .projection import project_cells

__all__ = ["FitOptions", "FitResult", "fit_natural_gradient", "project_cells"]
