r"""Student-t likelihood, `y = eta + sigma t` with `t` of `nu` degrees of freedom: a Normal that bears outliers.

.. math::

    \log p(y \mid \eta) &= \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\pi \nu} \, \sigma}
        - \frac{\nu + 1}{2} \log\left( 1 + \frac{(y - \eta)^2}{\nu \sigma^2} \right) \\
    g &= \frac{(\nu + 1) (y - \eta)}{\nu \sigma^2 + (y - \eta)^2}, \qquad
    w = E[g^2] = \frac{\nu + 1}{(\nu + 3) \, \sigma^2}

Where eta is Normal, values are sums of a Normal and a Student t:

.. math::

    \mathrm{var}(y) = \mathrm{var}(\eta) + \frac{\nu}{\nu - 2} \sigma^2, \qquad
    p(y) = \int p(y \mid \eta) \, \mathrm{Normal}\big( \eta; \, \bar\eta, \mathrm{var}(\eta) \big) \, d\eta

and their distribution function is the same integral over that of the t. Quantiles lie as many sigma from the mean of
eta as those of `t + ratio x`, with x a standard Normal and the ratio :math:`\mathrm{var}(\eta)^{1/2} / \sigma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtri, stdtr, stdtrit

from . import normal
from .base import Law, Likelihood, on_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor

# standard Normal values at which the integrals over eta are taken
NODES = np.linspace(-9, 9, 801)
# beyond this ratio of the two scales the sum is a Normal
LARGEST_RATIO = 25.0
# of ratios; cubic polynomials between the quantiles there are right to 1e-6 for levels from 0.001 to 0.999
GRID = np.expm1(np.linspace(0, math.log1p(LARGEST_RATIO), 65))
ENTRIES_PER_BLOCK = 10_000
MOST_STEPS, PRECISION, TINY = 100, 1e-12, 1e-300


def log_density(y: Tensor, eta: Tensor, sigma: Tensor, df: Tensor) -> Tensor:
    """Log density of `y`; shapes broadcast."""
    z = (y - eta) / sigma
    level = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log() - sigma.log()
    return level - (df + 1) / 2 * torch.log1p(z.square() / df)


def weight_and_score(y: Tensor, eta: Tensor, sigma: Tensor, df: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    residual = y - eta
    score = (df + 1) * residual / (df * sigma.square() + residual.square())
    return (df + 1) / ((df + 3) * sigma.square()), score


def mean(eta: Tensor, sigma: Tensor, df: Tensor) -> Tensor:
    """Expected value."""
    return eta


def variance(eta: Tensor, sigma: Tensor, df: Tensor) -> Tensor:
    """Variance of y given eta, where `df` is above 2."""
    return sigma.square() * (df / (df - 2))


def sample(eta: np.ndarray, sigma: np.ndarray, df: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw values."""
    shape = np.broadcast_shapes(np.shape(eta), np.shape(sigma), np.shape(df))
    return eta + sigma * rng.standard_t(df, size=shape)


@on_arrays
def lower_tail(y: np.ndarray, eta: np.ndarray, sigma: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P(Y <= y), accurate far out."""
    return stdtr(df, (y - eta) / sigma)


@on_arrays
def upper_tail(y: np.ndarray, eta: np.ndarray, sigma: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P(Y >= y), accurate far out."""
    return stdtr(df, (eta - y) / sigma)


@dataclass(frozen=True)
class StudentTLaw(Law):
    """Laws of sums of the Normal of eta and a Student t, (entries,)."""

    eta: Tensor
    var: Tensor  # of eta
    sigma: Tensor
    df: Tensor  # ()

    def mean(self) -> Tensor:
        return self.eta

    def variance(self) -> Tensor:
        return self.var + variance(self.eta, self.sigma, self.df)

    def log_density(self, y: Tensor) -> Tensor:
        return self._over_eta(log_density, normal.log_density, y)

    def lower_tail(self, y: Tensor) -> Tensor:
        return self._over_eta(_log_of(lower_tail), _log_of(normal.lower_tail), y).exp()

    def upper_tail(self, y: Tensor) -> Tensor:
        return self._over_eta(_log_of(upper_tail), _log_of(normal.upper_tail), y).exp()

    def quantile(self, level: float) -> np.ndarray:
        scale = self.sigma.numpy()
        ratio = self.var.sqrt().numpy() / scale
        return self.eta.numpy() + scale * _quantile_of_ratios(level, ratio, float(self.df))

    def at(self, index: Any) -> StudentTLaw:
        return replace(self, eta=self.eta[index], var=self.var[index], sigma=self.sigma[index])

    def _over_eta(self, log: Callable[..., Tensor], wide: Callable[..., Tensor], y: Tensor) -> Tensor:
        """Log of the mean of `exp(log)` over eta, as a sum; that of a Normal where eta varies by far the most."""
        z = torch.as_tensor(NODES, dtype=torch.float64, device=y.device)
        weight = torch.log_softmax(-0.5 * z.square(), dim=0)
        entries = zip(*(part.split(ENTRIES_PER_BLOCK) for part in (y, self.eta, self.var, self.sigma)), strict=True)
        given_z = (
            log(value[:, None], eta[:, None] + var.sqrt()[:, None] * z, sigma[:, None], self.df)
            for value, eta, var, sigma in entries
        )
        mixed = torch.cat([torch.logsumexp(part + weight, dim=1) for part in given_z])
        return torch.where(self.var.sqrt() <= LARGEST_RATIO * self.sigma, mixed, wide(y, self.eta, self.variance()))


def _log_of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: function(*arguments).log()


def law(mean: Tensor, var: Tensor, sigma: Tensor, df: Tensor) -> StudentTLaw:
    """Laws of values whose eta is Normal with these moments."""
    mean, var, sigma = torch.broadcast_tensors(mean, var, sigma)
    return StudentTLaw(mean, var, sigma, df)


def _quantile_of_ratios(level: float, ratio: np.ndarray, df: float) -> np.ndarray:
    """Quantiles of t + ratio x, between those of the ratios of a grid: only those on either side of one are solved."""
    from scipy.interpolate import CubicHermiteSpline  # slow to import, and only this needs it

    found = np.hypot(ratio, np.sqrt(df / (df - 2))) * ndtri(level)
    within = ratio <= LARGEST_RATIO
    if within.any():
        lower = np.searchsorted(GRID[1:-1], ratio[within], side="right")
        grid = GRID[np.unique([lower, lower + 1])]
        found[within] = CubicHermiteSpline(grid, *_solve(level, grid, df))(ratio[within])
    return found


def _solve(level: float, ratio: np.ndarray, df: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of t + ratio x, and their derivatives with respect to the ratio.

    By Newton's method between bounds outside which both would have to lie far out, or by halves where it leaves these.
    """
    weights = np.exp(-0.5 * NODES**2)
    weights /= weights.sum()
    half = min(level, 1 - level) / 2
    high = -stdtrit(df, half) - ratio * ndtri(half)
    low = -high
    x = np.hypot(ratio, 1) * ndtri(level)
    for _ in range(MOST_STEPS):
        apart = x[:, None] - ratio[:, None] * NODES
        error, density = stdtr(df, apart) @ weights - level, _density(apart, df) @ weights
        low, high = np.where(error < 0, x, low), np.where(error < 0, high, x)
        step = error / np.maximum(density, TINY)
        inside = (low < x - step) & (x - step < high)
        last, x = x, np.where(inside, x - step, (low + high) / 2)
        if (np.abs(x - last) <= PRECISION * np.maximum(np.abs(x), 1)).all():
            break
    density = _density(x[:, None] - ratio[:, None] * NODES, df)
    return x, density @ (weights * NODES) / np.maximum(density @ weights, TINY)


def _density(t: np.ndarray, df: float) -> np.ndarray:
    level = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi * df)
    return np.exp(level - (df + 1) / 2 * np.log1p(t**2 / df))


STUDENT_T = Likelihood(
    name="student_t",
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
