r"""A third explanation of a large count: it belongs neither to its cell nor to other cells.

A count far above expectation is improbable in its cell, and where its gene varies at all, it is less improbable
elsewhere, however badly other cells account for it too. So that such a count is not taken for one of theirs, a share
:math:`\varepsilon` of large counts is granted to the cell itself with a dispersion beyond that of any gene:

.. math::

    \log \big( p(y \mid \text{own}) + \varepsilon\, \mathrm{NB}(y \mid \lambda, \varphi) \big), \quad y > \lambda,
    \qquad \varphi = 5 / \min(\lambda, 1)

Its variance is :math:`\lambda + 5 \lambda \max(\lambda, 1)`: even where next to nothing is expected, counts have a tail
that falls by a sixth a molecule.

References
----------
Huber 1964, Robust estimation of a location parameter, Annals of Mathematical Statistics 35:73-101 (contamination).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import COUNTS

if TYPE_CHECKING:
    from torch import Tensor

SHARE, DISPERSION = 1e-7, 5.0
LEAST_RATE = 1e-12


def or_gross_error(likelihood: str, own: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """Log density of counts by their own cells, `own` without gross errors; shapes are equal.

    Presence has no room for gross errors.
    """
    unit = COUNTS[likelihood]
    if unit.MAXIMUM == 1:
        return own
    dispersion = DISPERSION / rate.clamp(LEAST_RATE, 1)
    gross = unit.log_density(y, rate.clamp_min(LEAST_RATE), dispersion)
    return torch.where(y > rate, torch.logaddexp(own, math.log(SHARE) + gross.to(own)), own)
