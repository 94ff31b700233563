"""The share of entries that come from other cells, and what each log ratio then says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..tally import histogram

if TYPE_CHECKING:
    from torch import Tensor

SHARE_STEPS = 200
START_SHARE = 1e-3
# misfit looks like other cells too; a larger share would measure that
MAX_SHARE = 0.01
# histogram of log ratios in [-50, 50]
RATIO_BINS, RATIO_MAX = 4000, 50.0


def ratio_histogram(log_ratio: Tensor, observed: Tensor | None) -> Tensor:
    """Number of log ratios in each bin, (bins,), of the entries that are data; None: all are."""
    return histogram(log_ratio if observed is None else log_ratio[observed], RATIO_BINS, -RATIO_MAX, RATIO_MAX)


def _centers(device: torch.device) -> Tensor:
    """Log ratios in the middle of each bin, (bins,) in float64."""
    steps = torch.arange(RATIO_BINS, dtype=torch.float64, device=device)
    return (2 * RATIO_MAX / RATIO_BINS) * (steps + 0.5) - RATIO_MAX


def least_log_ratio(share: float, fdr: float, device: torch.device) -> float:
    """The log ratio from which on the local false discovery rate is `fdr` or less, by bins; infinity: none is."""
    centers = _centers(device)
    likely = centers[from_others(centers, share) >= 1 - fdr]
    return float(likely[0]) - RATIO_MAX / RATIO_BINS if len(likely) else float("inf")


def fit_share(count: Tensor) -> float:
    """Prior share of entries that come from other cells, by EM on a histogram of log ratios (bins,).

    The share serves the local false discovery rate alone. It is no estimate of the share of anomalies, because every
    misfit of the predictive adds to it, and is therefore held at 1 % or less.
    """
    count, log_ratio = count.double(), _centers(count.device)
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
    value = torch.logaddexp((-weight).log1p(), log_ratio + weight.log())
    if len(value) and log_ratio.amin() == -torch.inf:  # most blocks are asked about as a whole
        value.masked_fill_(log_ratio == -torch.inf, 0.0)
    return value
