"""Bayesian factor models for single-cell data: `lfm.tl.fit(adata)`, then search, score, predict and project."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._settings import settings

if TYPE_CHECKING:
    from . import datasets, get, model, pl, tl

__version__ = "0.1.0"
__all__ = ["__version__", "datasets", "get", "model", "pl", "settings", "tl"]

_ROOMS = ("datasets", "get", "model", "pl", "tl")


def __getattr__(name: str) -> object:
    # torch, Pyro and scanpy take seconds to import: each room comes when it is first used
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
