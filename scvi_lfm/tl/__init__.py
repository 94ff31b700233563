"""Tools: one public function a file."""

from ._fit import fit

__all__ = ["fit"]
