"""Least noise variances: what sums of squares in float64, or in float32, can still tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# shares of the mean square of the data
NOISE_FLOOR = 1e-13
LOST_IN_FLOAT32 = 1e-4


def noise_floor(mean_square: Tensor) -> Tensor:
    """Least noise variance: what float64 can still tell in sums of squares of values with this mean square."""
    return (NOISE_FLOOR * mean_square).clamp_min(torch.finfo(torch.float32).tiny)


def noise_is_lost(precision: Tensor, mean_square: Tensor) -> bool:
    """Whether the noise is so small beside the values that sums of float32 squares do not show it."""
    return bool(precision.reciprocal().mean() < LOST_IN_FLOAT32 * mean_square)
