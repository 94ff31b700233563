r"""Predictive distributions of counts, with the uncertainty of eta integrated out.

Where eta is Normal, the rate is log-normal with mean :math:`M = e^{\bar\eta + \mathrm{var}(\eta) / 2}`, and the count
has mean M and variance :math:`M + \phi' M^2` with

.. math:: 1 + \phi' = e^{\mathrm{var}(\eta)} (1 + \phi)

It is taken for the negative binomial with these moments. Presence has no law but its probability,

.. math:: 1 - E \left[ \exp(-e^\eta) \right]

found by quadrature, because log-normal rates put far less on zero than a gamma with their moments: M is then the rate
that gives it, and phi' is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..model.likelihoods import COUNTS
from .rates import MAX_LOG_RATE

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import CountPosterior
    from .predictive import Moments

# e^var beyond this says no more than that nothing is known
MAX_VARIANCE = 20.0
# right to a few per cent of either probability at variance 9, and to 1e-3 at variance 1
NODES = 20


@dataclass(frozen=True)
class CountPredictive:
    """Predictive distributions of some entries, one of `COUNTS` each."""

    likelihood: str
    rate: Tensor  # M
    dispersion: Tensor  # phi'

    def at(self, index: tuple[Tensor, ...]) -> CountPredictive:
        """Those of some of the entries."""
        return CountPredictive(self.likelihood, self.rate[index], self.dispersion[index])

    def mean(self) -> Tensor:
        """Expected values."""
        return COUNTS[self.likelihood].mean(self.rate, self.dispersion)

    def log_zero(self) -> Tensor:
        """Log probability of a zero."""
        return COUNTS[self.likelihood].log_zero(self.rate, self.dispersion)

    def log_density(self, y: Tensor) -> Tensor:
        """Log probability of counts, in float64."""
        return COUNTS[self.likelihood].log_density(y, self.rate, self.dispersion)

    def variance(self) -> Tensor:
        """Variances."""
        return COUNTS[self.likelihood].variance(self.rate, self.dispersion)

    def quantile(self, level: float) -> np.ndarray:
        """Least value whose probability, with those below it, is at least `level`."""
        tails = COUNTS[self.likelihood].lower_tail
        rate, phi = self.rate.cpu().numpy(), self.dispersion.cpu().numpy()
        low, high = np.full(rate.shape, -1.0), np.ones(rate.shape)
        while (short := tails(high, rate, phi) < level).any():
            low, high = np.where(short, high, low), np.where(short, 2 * high, high)
        while (high - low > 1).any():
            middle = np.floor((low + high) / 2)
            enough = tails(middle, rate, phi) >= level
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return high


def mixed(likelihood: str, mean: Tensor, var: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """Rate M and dispersion phi' of the predictive, from moments of eta and the likelihood's dispersion."""
    var = var.clamp(max=MAX_VARIANCE)
    if COUNTS[likelihood].MAXIMUM == 1:
        return _rate_of_presence(mean, var), torch.zeros_like(mean)
    return (mean + var / 2).exp(), torch.expm1(var) * (1 + dispersion) + dispersion


def _rate_of_presence(mean: Tensor, var: Tensor) -> Tensor:
    """The rate whose probability of presence is that of a Normal log rate, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    sd = var.sqrt()
    present, absent = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
        rate = torch.add(mean, sd, alpha=node).clamp_(max=MAX_LOG_RATE).exp_().neg_()
        absent.add_(rate.exp(), alpha=weight)
        present.sub_(rate.expm1_(), alpha=weight)
    least = torch.finfo(mean.dtype).tiny
    return torch.where(present < 0.5, -torch.log1p(-present.clamp(max=0.5)), -absent.clamp_min_(least).log())


def predictive_counts(q: CountPosterior, eta: Moments, genes: Tensor) -> CountPredictive:
    """Predictive distributions of entries with these moments of eta, of the genes at some positions."""
    likelihood = q.noise.likelihood
    return CountPredictive(likelihood, *mixed(likelihood, eta.mean, eta.var, q.noise.dispersion[genes]))
