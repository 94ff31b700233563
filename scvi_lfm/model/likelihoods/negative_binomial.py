r"""Negative binomial likelihood, `y ~ NB(mean rate, dispersion phi)` with `rate = exp(eta)` and `theta = 1 / phi`.

.. math::

    \log p(y \mid \lambda) &= y \log \lambda - (y + \theta) \log(1 + \phi \lambda)
        + \log \frac{\Gamma(y + \theta)}{\Gamma(\theta) \, \theta^y \, y!} \\
    g &= \frac{y - \lambda}{1 + \phi \lambda}, \qquad w = E[g^2] = \frac{\lambda}{1 + \phi \lambda}, \qquad
    E[y] = \lambda, \quad \mathrm{var}(y) = \lambda + \phi \lambda^2

with g the score and w the Fisher information, both with respect to eta. At `phi = 0` all of it is the Poisson's.

Where eta is Normal, the rate is log-normal, and the count has mean M and variance :math:`M + \phi' M^2` with

.. math:: M = e^{\bar\eta + \mathrm{var}(\eta) / 2}, \qquad 1 + \phi' = e^{\mathrm{var}(\eta)} (1 + \phi)

It is taken for the negative binomial with these moments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.special
import torch

from .base import InFamily, Likelihood, on_arrays

if TYPE_CHECKING:
    from torch import Tensor

# below this dispersion nothing differs from the Poisson, and sums of log gamma functions would lose their digits
LEAST_DISPERSION = 1e-8
# sums over the molecules of a count are looked up in a table of the gene where they are fewer
LOOKED_UP = 16
MOST_SCORE = 3.0
# up to here a few terms of a series have all digits of float32
SMALL = 1 / 3
# a variance of eta beyond this says no more than that nothing is known
MAX_VARIANCE = 20.0


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
    damping = torch.addcmul(rate.new_ones(()), rate, dispersion).reciprocal_()
    score = (y - rate).mul_(damping)
    return damping.mul_(rate), score


def dispersion_score(y: Tensor, rate: Tensor, dispersion: Tensor) -> Tensor:
    r"""Derivative of the log density with respect to phi, summed over cells, (m,), no count's above `3 / phi`.

    .. math::

        \phi^2 \frac{\partial \log p}{\partial \phi} = \log(1 + x) - \frac{(1 + \phi y) x}{1 + x}
            + \sum_{l < y} \frac{\phi^2 l}{1 + \phi l}, \qquad x = \phi \lambda

    Most counts are zeros, of which :math:`\log(1 + x) - x / (1 + x)` is left. The bound is several standard deviations
    of what a count can say about log phi: odd counts must not set the dispersion by which they are judged.
    """
    x = rate * dispersion
    of_zero = _log_beyond(x)
    # a GPU would wait for where they are
    of_counts = _of_counts_found if y.device.type == "cpu" else _of_counts_anywhere
    total = of_zero.sum(0).double() + of_counts(y, x, of_zero, dispersion)
    return total / dispersion.double().square()


def _of_counts_found(y: Tensor, x: Tensor, of_zero: Tensor, dispersion: Tensor) -> Tensor:
    """What bounded scores of counts, times phi^2, add to those of zeros at the same rates, summed over cells, (m,)."""
    at, m = _where_above(y, 0), len(dispersion)
    gene = at % m
    y, x, of_zero, phi = *(values.reshape(-1)[at] for values in (y, x, of_zero)), dispersion[gene]
    table = _sums_over_molecules(dispersion, int(y.max()) if len(y) else 0)
    more = _of_small(y, x, phi, table, gene)
    large = torch.nonzero(y >= LOOKED_UP).flatten()
    more[large] = _of_large(y[large], x[large], phi[large]).to(more) - of_zero[large]
    more = torch.minimum(more, MOST_SCORE * phi - of_zero)
    return torch.zeros_like(dispersion, dtype=torch.float64).index_add_(0, gene, more.double())


def _of_counts_anywhere(y: Tensor, x: Tensor, of_zero: Tensor, dispersion: Tensor) -> Tensor:
    """What :func:`_of_counts_found` gives, without a search for counts."""
    gene = torch.arange(len(dispersion), device=y.device)
    more = _of_small(y, x, dispersion, _sums_over_molecules(dispersion, LOOKED_UP), gene)
    more = torch.where(y >= LOOKED_UP, _of_large(y, x, dispersion).to(more) - of_zero, more)
    more = torch.minimum(more, MOST_SCORE * dispersion - of_zero)
    return (more * (y > 0)).sum(0, dtype=torch.float64)


def _of_small(y: Tensor, x: Tensor, phi: Tensor, table: Tensor, gene: Tensor) -> Tensor:
    """What scores of counts that the table has, times phi^2, add to those of zeros."""
    pairs = table.flatten()[y.clamp(max=len(table) - 1).long() * table.shape[1] + gene]
    return pairs.addcmul_(phi * y, x / (1 + x), value=-1)


def _log_beyond(x: Tensor) -> Tensor:
    r""":math:`\log(1 + x) - x / (1 + x)`, (cells, m), in all digits of `x`.

    The difference loses them where x is small. With :math:`s = x / (2 + x)` it is :math:`2 s^2 / (1 + s) + 2 (s^3 / 3 +
    s^5 / 5 + \dots)`.
    """
    if x.dtype == torch.float64:
        return _as_difference(x)
    s, rest = x + 2, x + 1
    torch.div(x, s, out=s)  # no operation that computes costs as much as new memory does
    torch.div(x, rest, out=rest)
    square = s.square()
    found = torch.add(square.new_full((), 1 / 5), square, alpha=1 / 7).mul_(square).add_(1 / 3).mul_(square.mul_(2))
    found.add_(rest).mul_(s)
    if x.device.type != "cpu":
        return torch.where(x > SMALL, _as_difference(x), found)
    at = _where_above(x, SMALL)
    found.view(-1)[at] = _as_difference(x.reshape(-1)[at].double()).to(found)
    return found


def _as_difference(x: Tensor) -> Tensor:
    return torch.log1p(x) - x / (1 + x)


def _where_above(values: Tensor, bound: float) -> Tensor:
    """Positions of values on the CPU above a bound, as if they had one axis; NumPy finds them several times faster."""
    return torch.from_numpy(np.flatnonzero(values.numpy() > bound))


def _sums_over_molecules(phi: Tensor, most: int) -> Tensor:
    r""":math:`\sum_{l < y} \phi^2 l / (1 + \phi l)` of counts up to `most`, if fewer than `LOOKED_UP`, (counts, m)."""
    below = phi * torch.arange(min(most, LOOKED_UP - 1), dtype=phi.dtype, device=phi.device)[:, None]
    return torch.nn.functional.pad((phi * below / (1 + below)).cumsum(0), (0, 0, 1, 0))


def _of_large(y: Tensor, x: Tensor, phi: Tensor) -> Tensor:
    """Scores of some counts times phi^2, in float64: the terms are large, and cancel."""
    y, x, phi = y.double(), x.double(), phi.double()
    pairs = phi * y - torch.digamma(y + 1 / phi) + torch.digamma(1 / phi)
    return pairs + torch.log1p(x) - (1 + phi * y) * x / (1 + x)


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


@on_arrays
def upper_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y >= y), accurate far out."""
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    tail = scipy.special.betainc(np.maximum(y, 1), 1 / phi, rate * phi / (1 + rate * phi))
    return np.where(y > 0, tail, 1.0)


@on_arrays
def lower_tail(y: np.ndarray, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """P(Y <= y), accurate far out."""
    phi = np.maximum(dispersion, LEAST_DISPERSION)
    tail = scipy.special.betainc(1 / phi, np.maximum(y, 0) + 1, 1 / (1 + rate * phi))
    return np.where(y < 0, 0.0, tail)


class OfCounts(InFamily):
    """Laws of whole numbers from zero on."""

    def log_zero(self) -> Tensor:
        return log_zero(self.seen, *self.parameters)

    def quantile(self, level: float) -> np.ndarray:
        low, high = torch.full_like(self.seen, -1.0), torch.ones_like(self.seen)
        while (short := self.lower_tail(high) < level).any():
            low, high = torch.where(short, high, low), torch.where(short, 2 * high, high)
        while (high - low > 1).any():
            middle = ((low + high) / 2).floor()
            enough = self.lower_tail(middle) >= level
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return high.cpu().numpy()

    def transform(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Transforms of counts; zeros, of which there are many, in closed form."""
        draw = torch.rand(y.shape, generator=generator, dtype=torch.float32, device=generator.device).to(y)
        transform = self.log_zero().exp() * draw
        at = torch.nonzero(y, as_tuple=True)
        counts, law = y[at], self.at(at)
        itself = law.log_density(counts).exp()
        transform[at] = (1 - law.upper_tail(counts) + draw[at] * itself).to(transform)
        return transform


def law(mean: Tensor, var: Tensor, dispersion: Tensor) -> OfCounts:
    """Laws of counts whose eta is Normal with these moments."""
    var = var.clamp(max=MAX_VARIANCE)
    return OfCounts(NEGATIVE_BINOMIAL, (mean + var / 2).exp(), (torch.expm1(var) * (1 + dispersion) + dispersion,))


NEGATIVE_BINOMIAL = Likelihood(
    name="negative_binomial",
    has_rate=True,
    linear=False,
    log_density=log_density,
    weight_and_score=weight_and_score,
    dispersion_score=dispersion_score,
    mean=mean,
    variance=variance,
    sample=sample,
    lower_tail=lower_tail,
    upper_tail=upper_tail,
    law=law,
)
