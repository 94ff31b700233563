"""Data to try the package on: one real data set that ships with it, and draws from the model itself."""

from ._pbmc_sorted import pbmc_sorted
from ._simulate import simulate

__all__ = ["pbmc_sorted", "simulate"]
