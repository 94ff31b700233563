"""Values less their mean: where unseen entries are no zeros, a constant may move between values and mu."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from ...data import CellMatrix


def centred(matrix: CellMatrix, centre: float | None = None) -> tuple[CellMatrix, float]:
    """The matrix with its level and `centre`, by default the rest of their mean, taken from the stored values.

    Sums of squares then cancel less.
    A matrix in which all entries are data stays as it is, centred at zero.
    """
    values, level = matrix.values, matrix.level
    if matrix.observed is None or not matrix.observed.only or isinstance(values, np.ndarray):
        return matrix, 0.0
    centre = float(values.data.mean(dtype=np.float64)) - level if centre is None else centre
    data = values.data.astype(np.float64) - level - centre
    shifted = sp.csr_array((data.astype(_precise(values.dtype)), values.indices, values.indptr), shape=values.shape)
    held = matrix.held_out
    held = None if held is None else replace(held, y=held.y - centre)
    return replace(matrix, values=shifted, held_out=held, level=0.0), centre


def _precise(dtype: np.dtype) -> np.dtype:
    """Float64 stays, all else is float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
