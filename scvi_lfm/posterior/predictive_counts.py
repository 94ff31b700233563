r"""Predictive distributions of counts, with the uncertainty of eta integrated out.

Where eta is Normal with mean m and variance v, the rate is log-normal with mean :math:`M = e^{m + v/2}`, and the count
has mean M and variance :math:`M + \phi' M^2` with

.. math:: 1 + \phi' = e^v (1 + \phi)

It is taken for the negative binomial with these moments, and presence for the event that such a count is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..model.likelihoods import COUNTS

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import CountPosterior
    from .predictive import Moments

# e^v beyond this says no more than that nothing is known
MAX_VARIANCE = 20.0


@dataclass(frozen=True)
class CountPredictive:
    """Predictive distributions of some entries, one of `COUNTS` each."""

    likelihood: str
    rate: Tensor  # M
    dispersion: Tensor  # phi'

    def mean(self) -> Tensor:
        """Expected values."""
        return COUNTS[self.likelihood].mean(self.rate, self.dispersion)

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


def mixed(mean: Tensor, var: Tensor, dispersion: Tensor) -> tuple[Tensor, Tensor]:
    """Rate M and dispersion phi' of the predictive, from moments of eta and the likelihood's dispersion."""
    var = var.clamp(max=MAX_VARIANCE)
    return (mean + var / 2).exp(), torch.expm1(var) * (1 + dispersion) + dispersion


def predictive_counts(q: CountPosterior, eta: Moments, genes: Tensor) -> CountPredictive:
    """Predictive distributions of entries with these moments of eta, of the genes at some positions."""
    return CountPredictive(q.noise.likelihood, *mixed(eta.mean, eta.var, q.noise.dispersion[genes]))
