r"""Ordinal likelihood, cumulative probit: levels are parts of a scale on which eta lies with standard Normal noise.

.. math::

    \Pr(y \le \mathrm{lowest} + l) &= \Phi(\iota_l - \eta), \qquad
    f_l = \Phi(\iota_l - \eta) - \Phi(\iota_{l-1} - \eta) \\
    g &= \frac{\Phi'(\iota_{l-1} - \eta) - \Phi'(\iota_l - \eta)}{f_l}, \qquad
    w = E[g^2] = \sum_l \frac{(\Phi'(\iota_{l-1} - \eta) - \Phi'(\iota_l - \eta))^2}{f_l}

with increasing thresholds iota between levels, and one of minus and one of plus infinity around them. All differences
are over a scale, which is 1 in a fit. Where eta is Normal, y has the same law at its mean with the scale
:math:`\sqrt{1 + \mathrm{var}(\eta)}`. It suits ratings: their distances are learned, and no prediction lies beyond the
last level.

References
----------
Albert & Chib 1993, Bayesian analysis of binary and polychotomous response data, JASA 88:669-679.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.special
import torch

from .base import InFamily, Likelihood
from .normal import standard_tail

if TYPE_CHECKING:
    from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
TINY = 1e-30
# thresholds below the lowest and above the highest level: their gradients are finite
FAR = 1e4
# thresholds differ by at least so much
CLOSEST, RIDGE = 1e-3, 1e-9


def log_density(y: Tensor, eta: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor) -> Tensor:
    """Log probability of levels, in float64; shapes broadcast."""
    eta, scale = eta.double(), scale.double()
    below, above = _around(y.double(), eta, scale, lowest, thresholds)
    is_level = (y >= lowest) & (y <= lowest + len(thresholds)) & (y == y.round())
    return torch.where(is_level, _log_between(below, above), -torch.inf)


def weight_and_score(
    y: Tensor, eta: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Fisher information and score with respect to eta."""
    density, share = _densities_and_shares(eta, scale, thresholds)
    weight, score = torch.zeros_like(eta), torch.zeros_like(eta)
    for k, (before, after, of_level) in enumerate(zip(density[:-1], density[1:], share, strict=True)):
        difference = before - after
        slope = difference / of_level
        weight.addcmul_(difference, slope)
        score.addcmul_(slope, (y == lowest + k).to(slope))
    return weight.div_(scale * scale), score.div_(scale)


def mean(eta: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor) -> Tensor:
    """Expected level."""
    return lowest + _shares_above(eta, scale, thresholds).sum(0)


def variance(eta: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor) -> Tensor:
    """Variance of the level."""
    above = _shares_above(eta, scale, thresholds)
    odd = 2 * torch.arange(len(above), dtype=above.dtype, device=above.device) + 1
    return (torch.tensordot(odd, above, dims=1) - above.sum(0).square()).clamp_min(0)


def sample(
    eta: np.ndarray, scale: np.ndarray, lowest: np.ndarray, *thresholds_and_rng: np.ndarray | np.random.Generator
) -> np.ndarray:
    """Draw levels; the generator comes last."""
    *thresholds, rng = cast("tuple[Any, ...]", thresholds_and_rng)
    drawn = eta + scale * rng.standard_normal(np.broadcast_shapes(np.shape(eta), np.shape(scale)))
    return (lowest + sum(drawn > threshold for threshold in thresholds)).astype(np.int64)


def lower_tail(y: Tensor, eta: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor) -> Tensor:
    """P(Y <= y), accurate far out."""
    _, above = _around(y.double().floor(), eta.double(), scale.double(), lowest, thresholds)
    return torch.where(y < lowest, 0.0, _cdf(above))


def upper_tail(y: Tensor, eta: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor) -> Tensor:
    """P(Y >= y), accurate far out."""
    below, _ = _around(y.double(), eta.double(), scale.double(), lowest, thresholds)
    return torch.where(y > lowest + len(thresholds), 0.0, _cdf(-below))


def threshold_statistics(y: Tensor, eta: Tensor, lowest: Tensor, thresholds: Tensor) -> Tensor:
    """Statistics of the thresholds, (K-1, 3): sums of scores, and the diagonals of their Fisher information.

    The information is tridiagonal; its second diagonal stands beside the first, with a zero at the end.
    """
    found = torch.zeros(len(thresholds), 3, dtype=torch.float64, device=eta.device)
    density, share = _densities_and_shares(eta, eta.new_ones(()), tuple(thresholds.to(eta)))
    density = density[1:-1]
    for k, slope in enumerate(density):
        at, after = y == lowest + k, y == lowest + k + 1
        score = slope * (at / share[k] - after / share[k + 1])
        information = slope.square() * (1 / share[k] + 1 / share[k + 1])
        found[k, 0], found[k, 1] = score.sum(), information.sum()
        if k + 1 < len(density):
            found[k, 2] = -(slope * density[k + 1] / share[k + 1]).sum()
    return found


def update_thresholds(thresholds: Tensor, statistics: Tensor) -> Tensor:
    """One scoring step on the first threshold and the logs of the gaps, (K-1,), from :func:`threshold_statistics`.

    A level that was not seen loses its gap but for a rest.
    """
    score, diagonal, beside = statistics.T
    information = torch.diag(diagonal) + torch.diag(beside[:-1], 1) + torch.diag(beside[:-1], -1)
    gaps = thresholds.diff()
    slopes = torch.cat([torch.ones_like(thresholds)[:, None], gaps.expand(len(thresholds), -1).tril(-1)], dim=1)
    own = slopes.T @ information @ slopes
    own.diagonal().add_(RIDGE * own.diagonal().max().clamp_min(TINY))
    step = torch.linalg.solve(own, slopes.T @ score).clamp(-1, 1)
    gaps = (gaps * step[1:].exp()).clamp_min(CLOSEST)
    return torch.cat([thresholds[:1] + step[:1], thresholds[:1] + step[:1] + gaps.cumsum(0)])


class OfLevels(InFamily):
    """Laws of levels."""

    def levels(self) -> list[float]:
        _, lowest, *thresholds = self.parameters
        return [float(lowest) + k for k in range(len(thresholds) + 1)]

    def quantile(self, level: float) -> np.ndarray:
        found = torch.full_like(self.seen, self.levels()[-1])
        for value in reversed(self.levels()[:-1]):
            found = torch.where(self.lower_tail(torch.full_like(found, value)) >= level, value, found)
        return found.cpu().numpy()

    def transform(self, y: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.rand(y.shape, generator=generator, dtype=torch.float32, device=generator.device).to(y)
        return (self.lower_tail(y - 1) + draw * self.log_density(y).exp()).to(y)


def law(mean: Tensor, var: Tensor, scale: Tensor, lowest: Tensor, *thresholds: Tensor) -> OfLevels:
    """Laws of levels whose eta is Normal with these moments."""
    return OfLevels(ORDINAL, mean, ((scale.square() + var).sqrt(), lowest, *thresholds))


def marginal_thresholds(counts: np.ndarray) -> np.ndarray:
    """Thresholds at which an eta of zero gives levels as often as they were counted, (K-1,) from (K,)."""
    share = np.cumsum(counts + 0.5)[:-1] / np.sum(counts + 0.5)
    return scipy.special.ndtri(share)


def _shares_above(eta: Tensor, scale: Tensor, thresholds: tuple[Tensor, ...]) -> Tensor:
    """Probabilities of levels above each threshold, which come first."""
    return torch.stack([_cdf((eta - threshold) / scale) for threshold in thresholds])


def _around(
    y: Tensor, eta: Tensor, scale: Tensor, lowest: Tensor, thresholds: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The standardised thresholds below and above each level; beyond the last ones, far off."""
    below, above = y.new_full((), -FAR), y.new_full((), FAR)
    for k, threshold in enumerate(thresholds):
        below = torch.where(y > lowest + k, threshold.to(eta), below)
    for k, threshold in reversed(list(enumerate(thresholds))):
        above = torch.where(y <= lowest + k, threshold.to(eta), above)
    return (below - eta) / scale, (above - eta) / scale


def _densities_and_shares(
    eta: Tensor, scale: Tensor, thresholds: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Normal densities at the thresholds, zero beyond them, and probabilities of the levels between them."""
    density, share = [torch.zeros_like(eta)], []
    lower, upper, positive = torch.zeros_like(eta), torch.ones_like(eta), torch.zeros_like(eta, dtype=torch.bool)
    for threshold in thresholds:
        x = (threshold - eta) / scale
        lower_here, upper_here = _cdf(x), _cdf(-x)
        # from the side on which the tail is
        share.append(torch.where(positive, upper - upper_here, lower_here - lower).clamp_min_(TINY))
        density.append(x.square().mul_(-0.5).sub_(LOG_SQRT_2PI).exp_())
        lower, upper, positive = lower_here, upper_here, x > 0
    return [*density, torch.zeros_like(eta)], [*share, upper.clamp_min(TINY)]


def _log_between(below: Tensor, above: Tensor) -> Tensor:
    """log(Phi(above) - Phi(below)), accurate far out on either side."""
    flip = below > 0
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log1p(-(torch.special.log_ndtr(low) - log_high).exp().clamp(max=1 - 1e-7))


def _cdf(x: Tensor) -> Tensor:
    """Phi(x), accurate in the lower tail."""
    return standard_tail(-x)


ORDINAL = Likelihood(
    name="ordinal",
    has_rate=False,
    linear=False,
    log_density=log_density,
    weight_and_score=weight_and_score,
    mean=mean,
    variance=variance,
    sample=sample,
    lower_tail=lower_tail,
    upper_tail=upper_tail,
    law=law,
)
