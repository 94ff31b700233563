r"""Dispersion of each gene, :math:`\phi_j = 1 / \theta_j`: likelihood scoring, shrunk towards other genes.

One scoring step on averages over cells, with :math:`K_j = \sum_i w_{ij}^2`:

.. math::

    \hat\phi_j = \phi_j + \frac{1}{K_j} \sum_i \left( 2 (1 + \phi_j) \frac{\partial \log p_{ij}}{\partial \phi_j}
        + \ell_{ij} w_{ij} \right)

The leverage :math:`\ell = w \, \mathrm{var}(\eta)` gives back what the fit has taken from the residuals.

The estimate in effect counts pairs of molecules in a cell, :math:`(1 + \hat\phi_j) K_j / 2`, of which a rare gene has
few or none. Its noise is taken for that of a Poisson count with mean :math:`(1 + \phi_j) K_j / 2`, the dispersions of
genes for log-normal, with location and scale by empirical Bayes (EM on a grid), and each dispersion is replaced by its
posterior mean on the log scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..._workers import in_order

if TYPE_CHECKING:
    from torch import Tensor

    from .state import CountStatistics

# 1e-4 is Poisson in effect
LEAST, MOST = 1e-4, 1e2
GRID = 32
ROUNDS = 8
# location and scale are those of about so many genes, evenly spaced
ENOUGH_GENES = 2000
# of a block, whose grid stays in a processor's cache
GENES = 2048
START, START_SPREAD = math.log(0.2), 1.5


def update_dispersion(statistics: CountStatistics, n_cells: int, prior: DispersionPrior | None = None) -> Tensor:
    """Dispersions (m,), between 1e-4 and 100, under the prior that these genes tell, or one that was learned before."""
    prior = DispersionPrior.learned(statistics, n_cells) if prior is None else prior
    pairs, known = _pairs_and_known(statistics, n_cells)
    parts = in_order(lambda part: prior.mean(*part), zip(pairs.split(GENES), known.split(GENES), strict=True))
    return torch.cat(list(parts)).exp().clamp(LEAST, MOST).to(statistics.square.dtype)


def _pairs_and_known(statistics: CountStatistics, n_cells: int) -> tuple[Tensor, Tensor]:
    known = n_cells * statistics.square.double()
    return (known + n_cells * statistics.excess.double()).clamp_min(0) / 2, known


@dataclass(frozen=True)
class DispersionPrior:
    """The log dispersions of genes."""

    log_phi: Tensor  # (points,)
    centre: Tensor  # ()
    spread: Tensor  # ()

    @classmethod
    def learned(cls, statistics: CountStatistics, n_cells: int) -> DispersionPrior:
        """Prior by empirical Bayes: EM on a grid."""
        pairs, known = _pairs_and_known(statistics, n_cells)
        log_phi = torch.linspace(math.log(LEAST), math.log(MOST), GRID, dtype=torch.float64, device=known.device)
        every = max(1, len(pairs) // ENOUGH_GENES)
        some = _evidence(pairs[::every], known[::every], log_phi)
        centre, spread = known.new_full((), START), known.new_full((), START_SPREAD)
        for _ in range(ROUNDS):
            share = torch.softmax(some - 0.5 * ((log_phi - centre) / spread).square(), dim=1)
            centre = (share @ log_phi).mean()
            spread = (share @ (log_phi - centre).square()).mean().sqrt().clamp_min(0.1)
        return cls(log_phi, centre, spread)

    def mean(self, pairs: Tensor, known: Tensor) -> Tensor:
        """Posterior means of some genes, (m,)."""
        log_phi = self.log_phi
        share = self._posterior(pairs, known, log_phi)
        # what many counts know lies between two points of the grid: once more, close by
        mean, step = share @ log_phi, log_phi[1] - log_phi[0]
        sd = (share @ log_phi.square() - mean.square()).clamp_min(0).sqrt()
        across = torch.linspace(-1, 1, GRID, dtype=torch.float64, device=known.device)
        near = mean[:, None] + (3 * sd).clamp_min(1.5 * step)[:, None] * across
        return (self._posterior(pairs, known, near) * near).sum(1)

    def _posterior(self, pairs: Tensor, known: Tensor, log_phi: Tensor) -> Tensor:
        prior = 0.5 * ((log_phi - self.centre) / self.spread).square()
        return torch.softmax(_evidence(pairs, known, log_phi).sub_(prior), dim=1)


def _evidence(pairs: Tensor, known: Tensor, log_phi: Tensor) -> Tensor:
    """Log density of pairs of molecules, (m, points), at dispersions (points,) or (m, points)."""
    phi = log_phi.exp()
    return pairs[:, None] * torch.log1p(phi) - (known / 2)[:, None] * phi
