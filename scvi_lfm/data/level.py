"""A level that all values share: found, taken off as values are read, and refused where it has cost them their digits.

Beside a level of a million, float32 tells values apart by 0.06, and their squares are worth nothing. So what inference
and the posterior see are values less the level, which is subtracted in float64; the level is added once to what is told
of values.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._calls import warn_user
from .blocks import Blocks, slices

if TYPE_CHECKING:
    from .batch import Batch
    from .matrix import CellMatrix

# a mean beyond so many standard deviations of the values is a level: below, sums of float32 squares tell the variance
# to a hundred thousandth or better
SPREADS = 10.0
# so is one beyond the standard deviation of mu's prior, MU_SCALE in model/priors.py, which would pull it; but not
# within one standard deviation of the values, where a few large ones may have made the mean
LARGE = 100.0
# where more of the values are zero, they share no level; with fewer, a mean of ten standard deviations is possible
MOST_ZEROS = 1 / (1 + SPREADS**2)
# of the spread: what values may be off by
PRECISION = 1e-3
LARGEST_WHOLE = 2**53


def common_level(matrix: CellMatrix) -> float:
    """The level that the values which are data share, rounded so that it subtracts exactly; 0 where there is none."""
    if _share_not_stored(matrix) > MOST_ZEROS:
        return 0.0
    mean, spread, _ = _moments(matrix, 0.0)
    if abs(mean) <= _highest_without(spread):
        return 0.0
    # once more about the mean: squares of the values themselves have cancelled
    offset, spread, zeros = _moments(matrix, mean)
    mean += offset
    finest = float(np.spacing(abs(mean)))
    constant = spread <= PRECISION * finest
    if constant or abs(mean) <= _highest_without(spread) or zeros > MOST_ZEROS:
        return 0.0
    unit = max(2.0 ** math.floor(math.log2(min(spread, 1.0))), finest)
    return round(mean / unit) * unit


def at_level(matrix: CellMatrix, level: float, where: str, *, spread: float = 0.0) -> CellMatrix:
    """The matrix whose blocks and held-out values are less `level`; the same matrix where that is 0.

    Parameters
    ----------
    matrix
        The values, read from `where` in words.
    level
        The level of :func:`common_level`, or that of the fit which the values are to be judged by.
    spread
        Standard deviation of the values of that fit: a few of them may well vary less.

    Raises
    ------
    ValueError
        The values have lost the digits beside the level.
    """
    if level == 0:
        return matrix
    lowered = matrix.less(level)
    offset, own, _ = _moments(matrix, level)
    spread = max(spread, own)
    _check_digits(matrix, level, spread, where)
    if abs(offset) > max(abs(level) / 2, SPREADS * spread):
        msg = (
            f"The values of {where} lie around {level + offset:.10g}, and those of the fit around {level:.10g}; "
            "results mean little unless both are on the same scale."
        )
        warn_user(msg)
    return lowered


def _highest_without(spread: float) -> float:
    """The highest mean of values of some standard deviation that is no level."""
    return min(SPREADS * spread, max(spread, LARGE))


def _share_not_stored(matrix: CellMatrix) -> float:
    """Share of the data that are zeros which a sparse matrix does not store."""
    if not matrix.source.is_sparse or matrix.only_stored:
        return 0.0
    return 1 - matrix.source.n_stored / max(matrix.n_observed, 1)


def _moments(matrix: CellMatrix, level: float) -> tuple[float, float, float]:
    """Mean and standard deviation of the data less `level`; where that is not 0, the share of them that are zero."""
    total = square = 0.0
    zeros = 0
    bare = replace(matrix, level=level, held_out=None)
    everyone = Blocks(bare, list(slices(*matrix.shape, torch.float64)), torch.device("cpu"), torch.float64)
    for some in everyone.each(partial(_sums, level)):
        total, square, zeros = total + some[0], square + some[1], zeros + some[2]
    n = max(matrix.n_observed, 1)
    mean = total / n
    return mean, math.sqrt(max(square / n - mean**2, 0.0)), zeros / n


def _sums(level: float, batch: Batch) -> tuple[float, float, int]:
    """Sum and sum of squares of a block of the data less `level`, and how many are zero where that is not."""
    # entries that are no data are left out, or zero
    values = batch.values.numpy().ravel() if isinstance(batch.values, torch.Tensor) else batch.values.data
    return float(values.sum()), float(np.vdot(values, values)), int(np.count_nonzero(values == -level)) if level else 0


def _check_digits(matrix: CellMatrix, level: float, spread: float, where: str) -> None:
    found, dtype = matrix.summary, matrix.source.dtype
    spacing = _spacing(dtype, max(abs(found.stored_minimum), abs(found.stored_maximum)))
    # whole numbers were whole before, where the dtype could have told others from them
    if not found.n_stored or spacing <= PRECISION * spread or (spacing < 1 and found.n_whole == found.n_present):
        return
    msg = (
        f"{where} holds values around {level:.10g} with a standard deviation of {spread:.3g}, and {dtype} tells "
        f"values of that size apart by no less than {spacing:.3g}: the digits that differ are lost. Pass float64 from "
        f"before they were lost, or subtract the level first: (values - {level:.10g}).astype('float32')."
    )
    raise ValueError(msg)


def _spacing(dtype: np.dtype, largest: float) -> float:
    """Distance by which the values of a matrix are told apart, once they are in float64."""
    if dtype.kind == "f":
        return float(np.spacing(dtype.type(largest)))
    return 0.0 if largest <= LARGEST_WHOLE else float(np.spacing(float(largest)))
