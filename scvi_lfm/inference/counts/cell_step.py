r"""The local step: one Newton step for q(a, A) of each cell, with exact normal equations.

.. math::

    S_i^{-1} &= P^{-1} + \sum_j w_{ij} E[v_j v_j'] \\
    (a_i, A_i) &= S_i \left( P^{-1} p + \sum_j w_{ij} (z_{ij} - \mu) v_j - w_{ij} E[b_j v_j] \right), \qquad
    z_{ij} = \eta_{ij} - \log s_i + g_{ij} / w_{ij}
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...posterior.packed import unpack
from ...posterior.rates import cell_features, rates
from .equations import solve_rows

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from ...model import Gaussian
    from ...posterior.rates import GeneFeatures
    from .state import Cells


def cell_step(
    y: Tensor,
    cells: Cells,
    features: GeneFeatures,
    mu: Tensor,
    dispersion: Tensor,
    likelihood: ModuleType,
    prior: Gaussian,
    family: str,
    trust: Tensor | None = None,
) -> tuple[Cells, Tensor]:
    """q of the cells with counts `y` (cells, m) after one step, and what it expected to gain, in nats for each.

    `trust` (cells,) bounds the step, see :func:`solve_rows`.
    """
    p, k = features.packed_size, features.mean.shape[1]
    left, offset = cell_features(cells.mean, cells.cov), cells.log_size + mu.to(cells.mean.dtype)
    information = cells.mean.new_zeros(len(y), p + k)
    target = cells.mean.new_zeros(len(y), k)
    for genes in features.blocks(len(y)):
        linear = features.linear(cells.mean, genes)
        rate = rates(linear, features.half_variance(left, genes), offset)
        weight, score = likelihood.weight_and_score(y[:, genes], rate, dispersion[genes])
        information.addmm_(weight, features.moments[genes, p:])
        target.addmm_(score.addcmul_(weight, linear), features.slopes[genes])
    target -= information[:, p:]
    solved = solve_rows(information[:, :p], target, prior, cells.mean, family, trust)
    return replace(cells, mean=solved.mean, cov=solved.cov), solved.missing


def kl_rows(mean: Tensor, cov: Tensor, prior: Gaussian) -> Tensor:
    """KL of Normal rows with packed covariances from a prior, summed."""
    precision = torch.linalg.inv(prior.cov)
    centred = mean.double() - prior.mean
    total = centred.new_zeros(())
    for start in range(0, len(mean), 4096):
        rows = slice(start, start + 4096)
        full = unpack(cov[rows].double())
        total = total + (full * precision).sum() - torch.linalg.slogdet(full).logabsdet.sum()
    n, k = mean.shape
    return 0.5 * (total + ((centred @ precision) * centred).sum() - n * k + n * torch.logdet(prior.cov))
