"""The model: likelihoods as array mathematics, priors, and the Pyro program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import likelihoods
from .priors import Gaussian, PriorScales

if TYPE_CHECKING:
    from .program import GuideParameters, Scales, flow_guide, guide, mean_field_guide, model

__all__ = [
    "Gaussian",
    "GuideParameters",
    "PriorScales",
    "Scales",
    "flow_guide",
    "guide",
    "likelihoods",
    "mean_field_guide",
    "model",
]


def __getattr__(name: str) -> object:
    # Pyro takes a second to import, and only the program, which is all that is not here yet, needs it
    if name in __all__:
        from . import program

        return getattr(program, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
