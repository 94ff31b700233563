"""Inference: the closed-form engine here, the Pyro engine in `pyro`, which imports Pyro."""

from .loop import fit_natural_gradient
from .options import FitOptions, FitResult
from .project import place_cells

__all__ = ["FitOptions", "FitResult", "fit_natural_gradient", "place_cells"]
