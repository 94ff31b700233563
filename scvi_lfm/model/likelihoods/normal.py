r"""Normal likelihood, `y ~ Normal(eta, sigma^2)`.

.. math:: \log p(y \mid \eta) = -\tfrac12 \log 2\pi\sigma^2 - \frac{(y - \eta)^2}{2 \sigma^2}
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def log_density(y: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Log density of `y` under a Normal with `mean` and `var`; shapes broadcast."""
    return -0.5 * (_LOG_2PI + var.log() + (y - mean).square() / var)


def expected_log_density(expected_square: Tensor, precision: Tensor) -> Tensor:
    """E log p(y | eta) over q, from `E (y - eta)^2` and `1 / sigma^2`; shapes broadcast."""
    return 0.5 * (precision.log() - _LOG_2PI - precision * expected_square)


def upper_tail(z: Tensor) -> Tensor:
    """P(Z > z) of a standard Normal, accurate far out, where `1 - cdf` is zero long before the tail is."""
    return 0.5 * torch.erfc(z / math.sqrt(2))
