"""Black-box stochastic variational inference through Pyro: the reference engine. Importing this imports Pyro."""

from .loop import fit_pyro

__all__ = ["fit_pyro"]
