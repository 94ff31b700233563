r"""Leave-one-out moments of eta for observed entries, without a refit.

An entry acts on its own prediction through its cell, with leverage :math:`\ell_c = w_{ij} v_j' S_i v_j`, and through
its gene, with :math:`\ell_g = w_{ij} u_i' T_j u_i`. At the fixed point of inference it is one Normal observation of eta
among others, with weight w and score g; taking it out of either side is exact given the other; both together,

.. math::

    \chi_{ij} &= \frac{v_j' S_i v_j}{1 - \ell_c} + \frac{u_i' T_j u_i}{1 - \ell_g} \\
    \mathrm{mean} &= \bar\eta_{ij} - \chi_{ij} g_{ij}, \qquad
    \mathrm{var}(\eta_{ij}) = \chi_{ij} + \mathrm{tr}(S_{AA,i} T_{BB,j})

For the Normal likelihood :math:`w_j = 1 / \sigma_j^2` and :math:`g_{ij} = w_j (y_{ij} - \bar\eta_{ij})`, and the
predictive adds the noise for predicting. S and T_j are those of the fit, under its own noise. Where the leverages are
small, w chi is :math:`\ell / (1 - \ell)` with :math:`\ell = \ell_c + \ell_g`; where an entry has made a factor its own,
that sum passes 1 and chi stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .predictive import BlockPredictor, Moments

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import NormalPosterior

# both leverages are below 1, but not always by more than float32 can tell
MAX_LEVERAGE = 0.999


@dataclass(frozen=True)
class Fitted:
    """Mean of eta and the parts of its variance, of any shape; the parts may broadcast."""

    mean: Tensor
    by_cell: Tensor  # v' S v
    by_gene: Tensor  # u' T u
    by_both: Tensor  # tr(S_AA T_BB)


def left_out(fitted: Fitted, weight: Tensor, score: Tensor) -> Moments:
    """Moments of eta without observations of some weights and scores, one for each entry."""
    spread = _without(fitted.by_gene, weight).add_(_without(fitted.by_cell, weight))
    mean = torch.addcmul(fitted.mean, spread, score, value=-1)
    return Moments(mean, spread.add_(fitted.by_both))


def _without(var: Tensor, weight: Tensor) -> Tensor:
    return var / (1 - (var * weight).clamp_(max=MAX_LEVERAGE))


class LeaveOneOut:
    """Leave-one-out moments of blocks of observed entries under the Normal likelihood."""

    def __init__(self, q: NormalPosterior, dtype: torch.dtype = torch.float32) -> None:
        self._predictor = BlockPredictor(q, q.gene_cov.under(q.noise.sigma), dtype)
        self._noise = q.noise
        self._var, self._predictive_var = q.noise.sigma.to(dtype).square(), q.noise.predictive.to(dtype).square()

    def eta(self, y: Tensor, cells: slice) -> Moments:
        """Moments of eta for entries `y` (cells, m), each without itself."""
        of = self._predictor
        fitted = Fitted(of.mean(cells), of.from_cells(cells), of.from_genes(cells), of.product(cells))
        weight = self._noise.for_cells(self._var, cells).reciprocal()
        return left_out(fitted, weight, (y - fitted.mean).mul_(weight))

    def predictive(self, y: Tensor, cells: slice) -> Moments:
        """Moments of the value itself: those of eta plus noise."""
        eta = self.eta(y, cells)
        return Moments(eta.mean, eta.var.add_(self._noise.for_cells(self._predictive_var, cells)))
