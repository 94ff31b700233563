r"""Poisson likelihood, `y ~ Poisson(rate)` with `rate = exp(eta)`: the negative binomial without dispersion.

.. math::

    \log p(y \mid \lambda) = y \log \lambda - \lambda - \log y!, \qquad
    g = y - \lambda, \qquad w = \lambda, \qquad E[y] = \mathrm{var}(y) = \lambda

Where eta is uncertain, the predictive is no Poisson: its density and tails take the dispersion that the uncertainty
brings, and are those of the negative binomial.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .negative_binomial import NEGATIVE_BINOMIAL

if TYPE_CHECKING:
    from torch import Tensor


def weight_and_score(y: Tensor, rate: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    return rate, y - rate


POISSON = replace(
    NEGATIVE_BINOMIAL,
    name="poisson",
    weight_and_score=weight_and_score,
    dispersion_score=None,
)
