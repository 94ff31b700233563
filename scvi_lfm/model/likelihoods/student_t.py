r"""Student-t likelihood, `y = eta + sigma t` with `t` of `nu` degrees of freedom: a Normal that bears outliers.

.. math::

    \log p(y \mid \eta) = \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\pi \nu} \, \sigma}
        - \frac{\nu + 1}{2} \log\left( 1 + \frac{(y - \eta)^2}{\nu \sigma^2} \right)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def log_density(y: Tensor, eta: Tensor, sigma: Tensor, df: Tensor) -> Tensor:
    """Log density of `y`; shapes broadcast."""
    z = (y - eta) / sigma
    level = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log() - sigma.log()
    return level - (df + 1) / 2 * torch.log1p(z.square() / df)


def variance(sigma: Tensor, df: float) -> Tensor:
    """Variance of y given eta, where `df` is above 2."""
    return sigma.square() * (df / (df - 2))
