r"""Negative binomial likelihood, `y ~ NB(mean rate, dispersion phi)` with `rate = exp(eta)` and `theta = 1 / phi`.

.. math::

    \log p(y \mid \lambda) &= y \log \lambda - (y + \theta) \log(1 + \phi \lambda)
        + \log \frac{\Gamma(y + \theta)}{\Gamma(\theta) \, \theta^y \, y!} \\
    g &= \frac{y - \lambda}{1 + \phi \lambda}, \qquad w = E[g^2] = \frac{\lambda}{1 + \phi \lambda}, \qquad
    E[y] = \lambda, \quad \mathrm{var}(y) = \lambda + \phi \lambda^2

with g the score and w the Fisher information, both with respect to eta. At `phi = 0` all of it is the Poisson's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.special
import torch

if TYPE_CHECKING:
    from torch import Tensor

LEARNS_DISPERSION = True
MAXIMUM = None
VALUES = "non-negative whole numbers"
# below this dispersion nothing differs from the Poisson, and sums of log gamma functions would lose their digits
LEAST_DISPERSION = 1e-8


def log_density(y: Tensor, rate: Tensor, dispersion: Tensor) -> Tensor:
    """Log probability of `y`, in float64: it differs by digits that float32 does not have; shapes broadcast."""
    y, rate, phi = y.double(), rate.double(), dispersion.double().clamp_min(LEAST_DISPERSION)
    theta = 1 / phi
    ways = torch.lgamma(y + theta) - torch.lgamma(theta) + y * phi.log() - torch.lgamma(y + 1)
    return torch.special.xlogy(y, rate) - (y + theta) * torch.log1p(phi * rate) + ways


def log_zero(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Log probability of a zero, in the precision of `rate`."""
    phi = dispersion.clamp_min(LEAST_DISPERSION)
    return -torch.log1p(phi * rate) / phi


def weight_and_score(y: Tensor, rate: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    damping = (rate * dispersion).add_(1).reciprocal_()
    return rate * damping, (y - rate).mul_(damping)


def fisher_weight(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Fisher information with respect to eta."""
    return rate / (1 + dispersion * rate)


def mean(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Expected value."""
    return rate


def variance(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Variance of the value."""
    return rate + dispersion * rate.square()


def sample(rate: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw values: Poisson counts at rates spread by a gamma."""
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    return rng.poisson(rate * rng.gamma(1 / phi, phi, size=np.broadcast_shapes(np.shape(rate), np.shape(phi))))


def upper_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y >= y), accurate far out."""
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    tail = scipy.special.betainc(np.maximum(y, 1), 1 / phi, rate * phi / (1 + rate * phi))
    return np.where(y > 0, tail, 1.0)


def lower_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y <= y), accurate far out."""
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    tail = scipy.special.betainc(1 / phi, np.maximum(y, 0) + 1, 1 / (1 + rate * phi))
    return np.where(y < 0, 0.0, tail)
