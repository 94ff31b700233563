"""The only reader of `X` and layers: checks, then blocks of cells on the device."""

from ._blocks import Batch, CellMatrix
from ._gate import read_matrix

__all__ = ["Batch", "CellMatrix", "read_matrix"]
