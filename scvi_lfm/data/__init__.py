"""The only reader of `X` and layers: checks, then blocks of cells on the device."""

from ._blocks import Batch, CellMatrix, HeldOut, Observed, column_sums
from ._covariates import code, learn_coding, numbers_of_levels
from ._gate import read_matrix
from ._level import at_level, common_level
from ._observed import read_held_out, restrict

__all__ = [
    "Batch",
    "CellMatrix",
    "HeldOut",
    "Observed",
    "at_level",
    "code",
    "column_sums",
    "common_level",
    "learn_coding",
    "numbers_of_levels",
    "read_held_out",
    "read_matrix",
    "restrict",
]
