r"""Normal likelihood, `y ~ Normal(eta, sigma^2)`.

.. math::

    \log p(y \mid \eta) = -\tfrac12 \log 2\pi\sigma^2 - \frac{(y - \eta)^2}{2 \sigma^2}, \qquad
    g = \frac{y - \eta}{\sigma^2}, \qquad w = \frac{1}{\sigma^2}
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .base import InFamily, Likelihood

if TYPE_CHECKING:
    from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def log_density(y: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Log density of `y` under a Normal with `mean` and `var`; shapes broadcast."""
    return -0.5 * (_LOG_2PI + var.log() + (y - mean).square() / var)


def expected_log_density(expected_square: Tensor, precision: Tensor) -> Tensor:
    """E log p(y | eta) over q, from `E (y - eta)^2` and `1 / sigma^2`; shapes broadcast."""
    return 0.5 * (precision.log() - _LOG_2PI - precision * expected_square)


def weight_and_score(y: Tensor, eta: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    weight = var.reciprocal()
    return weight, (y - eta).mul_(weight)


def mean(eta: Tensor, var: Tensor) -> Tensor:
    """Expected value."""
    return eta


def variance(eta: Tensor, var: Tensor) -> Tensor:
    """Variance of the value."""
    return var


def sample(eta: np.ndarray, var: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw values."""
    return rng.normal(eta, np.sqrt(var))


def standard_tail(z: Tensor) -> Tensor:
    """P(Z > z) of a standard Normal, accurate far out, where `1 - cdf` is zero long before the tail is."""
    return 0.5 * torch.erfc(z / math.sqrt(2))


def lower_tail(y: Tensor, eta: Tensor, var: Tensor) -> Tensor:
    """P(Y <= y), accurate far out."""
    return standard_tail((eta - y) / var.sqrt())


def upper_tail(y: Tensor, eta: Tensor, var: Tensor) -> Tensor:
    """P(Y >= y), accurate far out."""
    return standard_tail((y - eta) / var.sqrt())


class NormalLaw(InFamily):
    """Laws of values that are Normal."""

    def quantile(self, level: float) -> np.ndarray:
        z = torch.special.ndtri(torch.tensor(level, dtype=torch.float64, device="cpu"))
        return (self.mean() + z * self.variance().sqrt()).numpy()


def law(mean: Tensor, var: Tensor, noise: Tensor) -> NormalLaw:
    """Laws of values whose eta is Normal with these moments, where `noise` is their variance about it."""
    return NormalLaw(NORMAL, mean, (var + noise,))


NORMAL = Likelihood(
    name="normal",
    has_rate=False,
    linear=True,
    log_density=log_density,
    weight_and_score=weight_and_score,
    mean=mean,
    variance=variance,
    sample=sample,
    lower_tail=lower_tail,
    upper_tail=upper_tail,
    law=law,
)
