"""Bayesian factor models for single-cell data: `lfm.tl.fit(adata)`, then search, score, predict and project."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._settings import settings

if TYPE_CHECKING:
    from . import datasets, get, model, pl, tl
    from .tl._plan import Plan, plan

__version__ = "0.1.0"
__all__ = ["Plan", "__version__", "datasets", "get", "model", "pl", "plan", "settings", "tl"]

_ROOMS = ("datasets", "get", "model", "pl", "tl")
_CALLS = ("Plan", "plan")


def __getattr__(name: str) -> object:
    # torch, Pyro and scanpy take seconds to import: each room, and what it gives, comes when it is first used
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _CALLS:
        return getattr(importlib.import_module(".tl._plan", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
