"""Values less their mean: where unseen entries are no zeros, a constant may move between values and mu."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...data import CellMatrix


def centred(matrix: CellMatrix, centre: float | None = None) -> tuple[CellMatrix, float]:
    """The matrix with `centre`, by default their mean, taken from the stored values, and what was taken.

    Sums of squares then cancel less.
    A matrix in which all entries are data stays as it is, centred at zero.
    """
    if not matrix.only_stored:
        return matrix, 0.0
    if centre is None:
        found = matrix.summary
        centre = found.total / max(found.n_stored, 1) - matrix.level
    lowered = matrix.less(centre)
    return lowered, lowered.level - matrix.level
