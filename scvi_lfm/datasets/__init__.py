"""Data to try the package on: a real data set that ships with it, draws from the model, and ratings that you have."""

from ._movielens import movielens
from ._pbmc_sorted import pbmc_sorted
from ._simulate import simulate

__all__ = ["movielens", "pbmc_sorted", "simulate"]


def __dir__() -> list[str]:
    return sorted(__all__)
