r"""Noise from observed entries, each gene's shrunk towards that of all.

With :math:`\hat\sigma_j^2` the mean expected squared residual of the :math:`n_j` observed values of gene j and
:math:`\sigma^2` the mean over all of them, the noise variances of genes are taken for spread around :math:`\sigma^2`
with variance :math:`\tau^2`, found by moments, and :math:`\hat\sigma_j^2` for one of them plus an error of variance
:math:`2 \sigma^4 / n_j`:

.. math::

    \tau^2 = \max\left( 0, \frac{\sum_j n_j (\hat\sigma_j^2 - \sigma^2)^2 - 2 m' \sigma^4}{\sum_j n_j} \right), \qquad
    \tilde\sigma_j^2 = \frac{n_0 \sigma^2 + n_j \hat\sigma_j^2}{n_0 + n_j}, \quad n_0 = 2 \sigma^4 / \tau^2
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..noise import noise_floor

if TYPE_CHECKING:
    from torch import Tensor

    from ..state import Problem
    from .state import ObservedGlobals, ObservedStatistics


def update_noise(
    problem: Problem, g: ObservedGlobals, statistics: ObservedStatistics, squares: Tensor
) -> ObservedGlobals:
    """Noise at the ELBO's maximum if all genes share it; one for each gene is shrunk."""
    if "sigma" in g.scales.fixed:
        return g
    if problem.noise == "shared":
        observed = statistics.observed()
        var = (squares.sum() / observed.sum()).clamp_min(noise_floor(statistics.mean_square)).expand_as(squares)
    else:
        var = shrunk_variances(problem, statistics, squares)
    return replace(g, precision=1 / var)


def shrunk_variances(problem: Problem, statistics: ObservedStatistics, squares: Tensor) -> Tensor:
    """Noise variance of each gene, (m,), from the mean over all cells of o E (y - eta)^2."""
    observed = statistics.observed()
    sums = (problem.n_cells * squares).clamp_min(0)
    count = (problem.n_cells * observed).clamp_min(0)
    shared = (sums.sum() / count.sum()).clamp_min(noise_floor(statistics.mean_square))
    deviations = torch.where(count > 0, sums / count.clamp_min(torch.finfo(count.dtype).tiny) - shared, 0.0)
    seen = (count > 0).sum()
    spread = ((count * deviations.square()).sum() - 2 * seen * shared.square()) / count.sum()
    # a prior size of infinity leaves what all genes share
    prior_size = 2 * shared.square() / spread.clamp_min(0)
    weight = torch.where(spread > 0, count / (count + prior_size), 0.0)
    return shared + weight * deviations
