r"""Bernoulli likelihood of presence, `y = 1` where a Poisson count at `rate = exp(eta)` would be at least one.

.. math::

    \Pr(y = 1 \mid \lambda) = 1 - e^{-\lambda}, \qquad
    g = y \frac{\lambda}{1 - e^{-\lambda}} - \lambda, \qquad w = \frac{\lambda^2}{e^{\lambda} - 1}, \qquad
    E[y] = 1 - e^{-\lambda}

This is the complementary log-log link, under which a size factor means for presence what it means for counts: twice
the depth, twice the rate. It suits binarised accessibility. Where the rate varies with dispersion phi,
:math:`\Pr(y = 0) = (1 + \phi \lambda)^{-1/\phi}`. Where eta is uncertain, presence has no law but its probability,

.. math:: 1 - E \left[ \exp(-e^\eta) \right]

found by quadrature, because log-normal rates put far less on zero than a gamma with their moments: the rate is then
that which gives it, without dispersion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .base import MAX_LOG_RATE, on_arrays
from .negative_binomial import LEAST_DISPERSION, MAX_VARIANCE, NEGATIVE_BINOMIAL, OfCounts, log_zero
from .poisson import POISSON

if TYPE_CHECKING:
    from torch import Tensor

# presence is certain long before, and exp would overflow
MOST_INFORMATIVE = 80.0
# right to a few per cent of either probability at variance 9, and to 1e-3 at variance 1
NODES = 20


def log_density(y: Tensor, rate: Tensor, dispersion: Tensor) -> Tensor:
    """Log probability of `y`, in float64; shapes broadcast."""
    zero = log_zero(rate.double(), dispersion.double())
    return torch.where(y > 0, torch.log(-torch.expm1(zero)), zero)


def weight_and_score(y: Tensor, rate: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    bounded = rate.clamp(torch.finfo(rate.dtype).tiny, MOST_INFORMATIVE)
    # the score of a one: rate / presence is rate + share
    share = bounded / torch.expm1(bounded)
    return bounded.mul_(share), (y - 1).mul(rate).addcmul_(y, share)


def mean(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Probability of presence."""
    return -torch.expm1(log_zero(rate, dispersion))


def variance(rate: Tensor, dispersion: Tensor) -> Tensor:
    """Variance of the value."""
    presence = mean(rate, dispersion)
    return presence * (1 - presence)


def sample(rate: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw values."""
    presence = -np.expm1(_log_absence(rate, dispersion))
    return (rng.random(np.broadcast_shapes(np.shape(rate), np.shape(dispersion))) < presence) * 1


@on_arrays
def upper_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y >= y)."""
    return np.where(y > 0, np.where(y > 1, 0.0, -np.expm1(_log_absence(rate, dispersion))), 1.0)


@on_arrays
def lower_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y <= y)."""
    return np.where(y > 0, 1.0, np.where(y < 0, 0.0, np.exp(_log_absence(rate, dispersion))))


def _log_absence(rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    return -np.log1p(phi * rate) / phi


def law(mean: Tensor, var: Tensor, dispersion: Tensor) -> OfCounts:
    """Laws of values whose eta is Normal with these moments, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    sd = var.clamp(max=MAX_VARIANCE).sqrt()
    present, absent = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
        rate = torch.add(mean, sd, alpha=node).clamp_(max=MAX_LOG_RATE).exp_().neg_()
        absent.add_(rate.exp(), alpha=weight)
        present.sub_(rate.expm1_(), alpha=weight)
    least = torch.finfo(mean.dtype).tiny
    rate = torch.where(present < 0.5, -torch.log1p(-present.clamp(max=0.5)), -absent.clamp_min_(least).log())
    return OfCounts(BERNOULLI, rate, (torch.zeros_like(mean),))


BERNOULLI = replace(
    NEGATIVE_BINOMIAL,
    name="bernoulli",
    maximum=1,
    summed=POISSON,
    log_density=log_density,
    weight_and_score=weight_and_score,
    dispersion_score=None,
    mean=mean,
    variance=variance,
    sample=sample,
    lower_tail=lower_tail,
    upper_tail=upper_tail,
    law=law,
)
