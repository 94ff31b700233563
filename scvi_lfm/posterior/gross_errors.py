r"""A third explanation of a large count: it belongs neither to its cell nor to other cells.

A count far above expectation is improbable in its cell, and where its gene varies at all, it is less improbable
elsewhere, however badly other cells account for it too. So that such a count is not taken for one of theirs, a share
:math:`\varepsilon` of large counts is granted to the cell itself with a dispersion beyond that of any gene:

.. math::

    \log \big( p(y \mid \text{own}) + \varepsilon\, \mathrm{NB}(y \mid \lambda, \varphi) \big), \quad y > E[y]

References
----------
Huber 1964, Robust estimation of a location parameter, Annals of Mathematical Statistics 35:73-101 (contaminated models).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..model.likelihoods import negative_binomial

if TYPE_CHECKING:
    from torch import Tensor

SHARE, DISPERSION = 1e-3, 20.0


def or_gross_error(own: Tensor, y: Tensor, rate: Tensor, expected: Tensor) -> Tensor:
    """Log density of counts by their own cells, `own` without gross errors; shapes are equal."""
    gross = negative_binomial.log_density(y, rate, torch.full_like(rate, DISPERSION))
    return torch.where(y > expected, torch.logaddexp(own, math.log(SHARE) + gross.to(own)), own)
