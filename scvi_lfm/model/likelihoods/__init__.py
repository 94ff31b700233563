"""Likelihoods as array mathematics: no Pyro, no AnnData. One file each."""

from . import normal

__all__ = ["normal"]
