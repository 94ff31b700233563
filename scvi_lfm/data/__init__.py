"""The only reader of `X` and layers: checks, then blocks of cells on the device."""

from ._blocks import Batch, CellMatrix
from ._covariates import code, learn_coding
from ._gate import read_matrix

__all__ = ["Batch", "CellMatrix", "code", "learn_coding", "read_matrix"]
