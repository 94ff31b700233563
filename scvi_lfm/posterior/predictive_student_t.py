r"""The predictive distribution under the Student t: that of eta, a Normal, plus noise of scale sigma.

.. math::

    \mathrm{var}(y) = \mathrm{var}(\eta) + \frac{\nu}{\nu - 2} \sigma^2, \qquad
    p(y) = \int p(y \mid \eta) \, \mathrm{Normal}(\eta; \bar\eta, \mathrm{var}(\eta)) \, d\eta

and its distribution function is the same integral over that of the t. Quantiles, less the mean and in units of sigma,
are one function of :math:`\mathrm{var}(\eta)^{1/2} / \sigma` for each probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtri, stdtr, stdtrit

from ..model.likelihoods import normal, student_t

if TYPE_CHECKING:
    from torch import Tensor

    from .predictive import Moments

NODES = np.linspace(-9, 9, 801)
# beyond this ratio of the two scales the sum is a Normal
LARGEST_RATIO = 25.0
LEAST_RATIO = 1e-3
GRID = 65
ENTRIES_PER_BLOCK = 10_000
HALVINGS = 45


def quantile(level: float, eta: Moments, sigma: Tensor, df: float) -> np.ndarray:
    """Quantile of the value of each entry, from moments of eta and scales (entries,)."""
    scale = sigma.numpy()
    ratio = eta.var.sqrt().numpy() / scale
    return eta.mean.numpy() + scale * _of_ratios(level, ratio, df)


def log_density(y: Tensor, eta: Moments, sigma: Tensor, df: float) -> Tensor:
    """Log density of values, from moments of eta and scales, (entries,) each; the integral over z is a sum."""
    z = torch.as_tensor(NODES, dtype=torch.float64, device=y.device)
    weight = torch.log_softmax(-0.5 * z.square(), dim=0)
    nu = torch.as_tensor(df, dtype=torch.float64, device=y.device)
    parts = zip(*(part.split(ENTRIES_PER_BLOCK) for part in (y, eta.mean, eta.var, sigma)), strict=True)
    given_z = (
        student_t.log_density(value[:, None], mean[:, None] + var.sqrt()[:, None] * z, scale[:, None], nu)
        for value, mean, var, scale in parts
    )
    mixed = torch.cat([torch.logsumexp(part + weight, dim=1) for part in given_z])
    wide = normal.log_density(y, eta.mean, eta.var + student_t.variance(sigma, df))
    return torch.where(eta.var.sqrt() <= LARGEST_RATIO * sigma, mixed, wide)


def _of_ratios(level: float, ratio: np.ndarray, df: float) -> np.ndarray:
    wide = np.hypot(ratio, np.sqrt(df / (df - 2))) * ndtri(level)
    within = ratio <= LARGEST_RATIO
    if not within.any():
        return wide
    last = max(float(ratio[within].max()), LEAST_RATIO)
    grid = np.expm1(np.linspace(0, np.log1p(last), GRID))
    grid[-1] = last
    return np.where(within, PchipInterpolator(grid, _solve(level, grid, df), extrapolate=False)(ratio), wide)


def _solve(level: float, ratio: np.ndarray, df: float) -> np.ndarray:
    """Quantiles of t + ratio z, by bisection between bounds outside which both would have to lie far out."""
    weights = np.exp(-0.5 * NODES**2)
    weights /= weights.sum()
    half = min(level, 1 - level) / 2
    high = -stdtrit(df, half) - ratio * ndtri(half)
    low = -high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = stdtr(df, middle[:, None] - ratio[:, None] * NODES) @ weights < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
