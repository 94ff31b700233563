r"""The question "does this value look as if it came from other cells?" for one gene at a time.

.. math:: y \mid \text{other cells} \sim \mathrm{Normal}(M_j, V_j + \tilde\sigma_j^2)

with M_j and V_j the mean and variance of the gene's expected eta over the fitted population of cells, and the noise for
predicting. A gene that is rare everywhere is as improbable under it as under the cell's own prediction: rarity alone
cannot score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .posterior import extend

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.noise import NormalNoise
    from .posterior import NormalPosterior

SHARE_STEPS = 200
START_SHARE = 1e-3
# misfit looks like other cells too; a larger share would measure that
MAX_SHARE = 0.01
# histogram of log ratios in [-50, 50]
RATIO_BINS, RATIO_MAX = 4000, 50.0


@dataclass(frozen=True)
class OtherCells:
    """Mean and variance of the values that a gene takes in other cells, (m,) each."""

    mean: Tensor
    var: Tensor
    noise: NormalNoise

    def seen_by(self, cells: slice) -> Tensor:
        """Variances under the noise of some cells, (m,) or (cells, m) in float32."""
        if self.noise.cell is None:
            return self.var.float()
        own = self.noise.predictive.square()
        return (self.var - own).float() + self.noise.for_cells(own.float(), cells)


def other_cells(q: NormalPosterior) -> OtherCells:
    """Population moments of each gene from the prior of (a, A), which was learned from all fitted cells.

    The noise is that of a cell with sigma_i = 1; see :meth:`OtherCells.seen_by`.
    """
    v = extend(q.gene_mean)
    mean = q.mu + q.gene_mean[:, 0] + v @ q.cell_prior.mean
    spread = ((v @ q.cell_prior.cov) * v).sum(1)
    return OtherCells(mean, spread + q.noise.predictive.square(), q.noise)


def ratio_histogram(log_ratio: Tensor) -> Tensor:
    """Number of log ratios in each bin, (bins,)."""
    return torch.histc(log_ratio.clamp(-RATIO_MAX, RATIO_MAX), RATIO_BINS, -RATIO_MAX, RATIO_MAX)


def ratio_centers(device: torch.device) -> Tensor:
    """Log ratios in the middle of each bin, (bins,) in float64."""
    steps = torch.arange(RATIO_BINS, dtype=torch.float64, device=device)
    return (2 * RATIO_MAX / RATIO_BINS) * (steps + 0.5) - RATIO_MAX


def fit_share(log_ratio: Tensor, count: Tensor) -> float:
    """Prior share of entries that come from other cells, by EM on a histogram of log ratios.

    The share serves the local false discovery rate alone. It is no estimate of the share of anomalies, because every
    misfit of the predictive adds to it, and is therefore held at 1 % or less.
    """
    share, total = START_SHARE, count.sum()
    for _ in range(SHARE_STEPS):
        share = min(float((count * from_others(log_ratio, share)).sum() / total), MAX_SHARE)
    return share


def from_others(log_ratio: Tensor, share: float) -> Tensor:
    """Posterior probability that an entry comes from other cells; one minus it is the local false discovery rate."""
    return torch.sigmoid(log_ratio + torch.logit(log_ratio.new_tensor(share)))


def evidence(log_ratio: Tensor, share: float) -> Tensor:
    """log((1 - share) + share exp(log_ratio)), in nats: what an entry says for some of its kind being from other cells.

    An entry that was not asked about (log ratio of minus infinity) says nothing.
    """
    weight = log_ratio.new_tensor(share)
    value = torch.logaddexp((-weight).log1p(), weight.log() + log_ratio)
    return value.masked_fill_(log_ratio == -torch.inf, 0.0)
