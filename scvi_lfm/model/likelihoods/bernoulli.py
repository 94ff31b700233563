r"""Bernoulli likelihood of presence, `y = 1` where a Poisson count at `rate = exp(eta)` would be at least one.

.. math::

    \Pr(y = 1 \mid \lambda) = 1 - e^{-\lambda}, \qquad
    g = y \frac{\lambda}{1 - e^{-\lambda}} - \lambda, \qquad w = \frac{\lambda^2}{e^{\lambda} - 1}, \qquad
    E[y] = 1 - e^{-\lambda}

This is the complementary log-log link, under which a size factor means for presence what it means for counts: twice
the depth, twice the rate. It suits binarised accessibility. Where eta is uncertain, or the rate varies with dispersion
phi, :math:`\Pr(y = 0) = (1 + \phi \lambda)^{-1/\phi}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .negative_binomial import LEAST_DISPERSION, log_zero

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LEARNS_DISPERSION",
    "LEAST_DISPERSION",
    "MAXIMUM",
    "VALUES",
    "fisher_weight",
    "log_density",
    "log_zero",
    "lower_tail",
    "mean",
    "sample",
    "upper_tail",
    "variance",
    "weight_and_score",
]

LEARNS_DISPERSION = False
MAXIMUM = 1
VALUES = "zeros and ones"
# presence is certain long before, and exp would overflow
MOST_INFORMATIVE = 80.0


def log_density(y: Tensor, rate: Tensor, dispersion: Tensor) -> Tensor:
    """Log probability of `y`, in float64; shapes broadcast."""
    zero = log_zero(rate.double(), dispersion.double())
    return torch.where(y > 0, torch.log(-torch.expm1(zero)), zero)


def weight_and_score(y: Tensor, rate: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    presence = -torch.expm1(-rate)
    return fisher_weight(rate, dispersion), y * (rate / presence.clamp_min(torch.finfo(rate.dtype).tiny)) - rate


def fisher_weight(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Fisher information with respect to eta."""
    bounded = rate.clamp(torch.finfo(rate.dtype).tiny, MOST_INFORMATIVE)
    return bounded * (bounded / torch.expm1(bounded))


def mean(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Probability of presence."""
    return -torch.expm1(log_zero(rate, dispersion))


def variance(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Variance of the value."""
    presence = mean(rate, dispersion)
    return presence * (1 - presence)


def sample(rate: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw values."""
    return (rng.random(np.broadcast_shapes(np.shape(rate), np.shape(dispersion))) < _presence(rate, dispersion)) * 1


def upper_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y >= y)."""
    return np.where(y > 0, _presence(rate, dispersion), 1.0)


def lower_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y <= y)."""
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    absence = np.exp(-np.log1p(phi * rate) / phi)
    return np.where(y > 0, 1.0, np.where(y < 0, 0.0, absence))


def _presence(rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    return -np.expm1(-np.log1p(phi * rate) / phi)
