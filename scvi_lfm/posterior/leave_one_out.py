r"""Leave-one-out predictions of observed entries, without a refit.

With :math:`h = w_{ij} (v_j' S v_j + u_i' T_j u_i)`, the leverage that the entry has on its own prediction through its
cell and through its gene,

.. math::

    \mathrm{mean} &= \bar\eta_{ij} - \frac{h}{1 - h} (y_{ij} - \bar\eta_{ij}) \\
    \mathrm{var}(\eta_{ij}) &= \frac{h / w_{ij}}{1 - h} + \mathrm{tr}(S_{AA} T_{BB,j})

and the predictive adds s_j^2. S and T_j are those of the fit, under its own noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .predictive import BlockPredictor, Moments

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior

# an entry that decides its own prediction alone says nothing about itself
MAX_LEVERAGE = 0.99


class LeaveOneOut:
    """Leave-one-out moments of blocks of observed entries."""

    def __init__(self, q: Posterior, dtype: torch.dtype = torch.float32) -> None:
        self._predictor = BlockPredictor(q, q.sigma, dtype)
        self._weight = q.sigma.to(dtype).square().reciprocal()
        self._noise = q.predictive_sigma.to(dtype).square()

    def eta(self, y: Tensor, cells: slice) -> Moments:
        """Moments of eta for entries `y` (cells, m), each without itself."""
        fitted = self._predictor.mean(cells)
        leverage = self._predictor.from_genes(cells).add_(self._predictor.from_cells).mul_(self._weight)
        leverage.clamp_(max=MAX_LEVERAGE)
        ratio = leverage / (1 - leverage)
        mean = torch.addcmul(fitted, ratio, y - fitted, value=-1)
        return Moments(mean, ratio.div_(self._weight).add_(self._predictor.product))

    def predictive(self, y: Tensor, cells: slice) -> Moments:
        """Moments of the value itself: those of eta plus noise."""
        eta = self.eta(y, cells)
        return Moments(eta.mean, eta.var.add_(self._noise))
