r"""Gross errors: a third explanation of a large count, which belongs neither to its cell nor to other cells.

Each molecule that is expected begins a burst with probability :math:`\varepsilon`, and a burst adds a geometric number
of molecules, :math:`\mathrm{size}` in the mean:

.. math::

    p(y \mid \text{gross error}) = \left( 1 - e^{-\varepsilon M} \right)
        \frac{1}{1 + \mathrm{size}} \left( \frac{\mathrm{size}}{1 + \mathrm{size}} \right)^{y - M}, \qquad y > M

where M is the expected value. :math:`\varepsilon` and size are fitted by EM, with the share of entries that come from
other cells held.

References
----------
Huber 1964, Robust estimation of a location parameter, Annals of Mathematical Statistics 35:73-101 (contamination).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 100
START_SHARE, START_SIZE = 1e-3, 10.0
# a burst of less than a molecule is none
LEAST_SIZE = 1.0
LEAST_RATE, LEAST_SHARE = 1e-12, 1e-30


@dataclass(frozen=True)
class GrossErrors:
    """Frequency of gross errors among counts, and their size."""

    share: float  # probability for each molecule that is expected
    size: float  # mean of what is added, in molecules

    def log_density(self, y: Tensor, rate: Tensor) -> Tensor:
        """Log probability, with that of a gross error in it, of counts above their expected values, in float64."""
        y, rate = y.double(), rate.double().clamp_min(LEAST_RATE)
        begun = torch.log(-torch.expm1(-self.share * rate))
        burst = (y - rate).clamp_min(0) * math.log(self.size / (1 + self.size)) - math.log1p(self.size)
        return torch.where(y > rate, begun + burst, -torch.inf)

    def added_to(self, own: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        """Log density of counts by their own cells, from `own` without gross errors; shapes are equal."""
        return torch.logaddexp(own.double(), self.log_density(y, rate))


def most_likely_burst(y: Tensor, rate: Tensor) -> Tensor:
    """Log density of a burst of the size that suits each count best, were every molecule to begin one."""
    added = (y - rate).clamp_min(LEAST_RATE)
    return rate.clamp_min(LEAST_RATE).log() + torch.xlogy(added, added / (1 + added)) - torch.log1p(added)


def fit_gross_errors(
    own: Tensor, other: Tensor, y: Tensor, rate: Tensor, share: float, n_molecules: float
) -> tuple[GrossErrors, Tensor]:
    """The share and size of gross errors by EM, and the probability (k,) that each count is not its own cell's.

    `own` and `other` (k,) are log densities by the own and by other cells, of the counts `y` with expected values
    `rate`; other cells have a `share` of all entries. The rest of the `n_molecules` is taken for their own cells'.
    """
    gross = GrossErrors(START_SHARE, START_SIZE)
    for _ in range(STEPS):
        bursts = _shares(gross, own, other, y, rate, share)[2]
        total = float(bursts.sum())
        size = float((bursts * (y - rate)).sum()) / total if total > 0 else START_SIZE
        gross = GrossErrors(max(total / n_molecules, LEAST_SHARE), max(size, LEAST_SIZE))
    return gross, 1 - _shares(gross, own, other, y, rate, share)[0]


def _shares(gross: GrossErrors, own: Tensor, other: Tensor, y: Tensor, rate: Tensor, share: float) -> Tensor:
    """Probabilities of being the own cell's, another cell's and a gross error, (3, k)."""
    parts = torch.stack([own.double(), math.log(max(share, LEAST_SHARE)) + other.double(), gross.log_density(y, rate)])
    return parts.softmax(0)
