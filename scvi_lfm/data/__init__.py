"""The only reader of `X` and layers: checks, then blocks of cells on the device."""

from .batch import Batch, Scaled, column_sums
from .covariates import code, learn_coding, numbers_of_levels
from .entries import HeldOut, Observed
from .gate import judged, read_matrix
from .level import at_level, common_level
from .matrix import CellMatrix
from .memory import MemorySource
from .normalised_as_read import UnfitValuesError
from .observed import read_held_out, restrict
from .sample import draw_sample
from .source import CellSource
from .summary import Summary

__all__ = [
    "Batch",
    "CellMatrix",
    "CellSource",
    "HeldOut",
    "MemorySource",
    "Observed",
    "Scaled",
    "Summary",
    "UnfitValuesError",
    "at_level",
    "code",
    "column_sums",
    "common_level",
    "draw_sample",
    "judged",
    "learn_coding",
    "numbers_of_levels",
    "read_held_out",
    "read_matrix",
    "restrict",
]
