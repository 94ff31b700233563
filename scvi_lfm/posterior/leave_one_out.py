r"""Leave-one-out predictions of observed entries, without a refit.

An entry acts on its own prediction through its cell, with leverage :math:`h_c = w_j v_j' S v_j`, and through its gene,
with :math:`h_g = w_j u_i' T_j u_i`. Taking it out of either side is exact given the other; both together,

.. math::

    \rho &= \frac{h_c}{1 - h_c} + \frac{h_g}{1 - h_g} \\
    \mathrm{mean} &= \bar\eta_{ij} - \rho (y_{ij} - \bar\eta_{ij}) \\
    \mathrm{var}(\eta_{ij}) &= \rho / w_j + \mathrm{tr}(S_{AA} T_{BB,j})

and the predictive adds s_j^2. S and T_j are those of the fit, under its own noise. Where the leverages are small, rho
is :math:`h / (1 - h)` with :math:`h = h_c + h_g`; where an entry has made a factor its own, that h passes 1 and rho
stays finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .predictive import BlockPredictor, Moments

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import NormalPosterior

# both leverages are below 1, but not always by more than float32 can tell
MAX_LEVERAGE = 0.999


class LeaveOneOut:
    """Leave-one-out moments of blocks of observed entries."""

    def __init__(self, q: NormalPosterior, dtype: torch.dtype = torch.float32) -> None:
        self._predictor = BlockPredictor(q, q.gene_cov.under(q.noise.sigma), dtype)
        self._noise = q.noise
        self._weight = q.noise.sigma.to(dtype).square().reciprocal()
        self._var, self._predictive_var = q.noise.sigma.to(dtype).square(), q.noise.predictive.to(dtype).square()

    def eta(self, y: Tensor, cells: slice) -> Moments:
        """Moments of eta for entries `y` (cells, m), each without itself."""
        fitted = self._predictor.mean(cells)
        weight = self._weight
        if self._noise.cell is not None:
            weight = self._noise.for_cells(self._var, cells).reciprocal()
        ratio = _odds(self._predictor.from_genes(cells).mul_(weight))
        ratio += _odds(self._predictor.from_cells(cells) * weight)
        mean = torch.addcmul(fitted, ratio, y - fitted, value=-1)
        return Moments(mean, ratio.div_(weight).add_(self._predictor.product(cells)))

    def predictive(self, y: Tensor, cells: slice) -> Moments:
        """Moments of the value itself: those of eta plus noise."""
        eta = self.eta(y, cells)
        return Moments(eta.mean, eta.var.add_(self._noise.for_cells(self._predictive_var, cells)))


def _odds(leverage: Tensor) -> Tensor:
    leverage = leverage.clamp(max=MAX_LEVERAGE)
    return leverage / (1 - leverage)
