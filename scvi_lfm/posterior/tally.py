"""Numbers of entries in each of equal bins, and their sums over parts of the data."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def tally(places: Tensor, n_bins: int) -> Tensor:
    """Numbers of `places` that are 0, 1, ..., (bins,) in int64; they are whole and below `n_bins`, of any dtype."""
    places = places.to(torch.int32).flatten()
    if places.device.type != "cpu":
        return torch.bincount(places, minlength=n_bins)
    # several times as fast as torch's
    return torch.from_numpy(np.bincount(places.numpy(), minlength=n_bins))


def histogram(values: Tensor, n_bins: int, low: float, high: float) -> Tensor:
    """Numbers of values in each bin between `low` and `high`, (bins,); those beyond are in the bins at the ends."""
    places = torch.sub(values, low).mul_(n_bins / (high - low))
    return tally(places.clamp_(0, n_bins - 1), n_bins)


def added(parts: Iterable[Tensor], _: int = 0) -> Tensor:
    """Sum over blocks of cells of what was counted in each; pools what workers find."""
    return functools.reduce(torch.add, parts)
