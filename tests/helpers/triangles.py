"""Symmetric matrices as the package stores them, by their lower triangles: written anew, to hold the package to it."""

from __future__ import annotations

import numpy as np


def unpacked(values: np.ndarray) -> np.ndarray:
    """Symmetric matrices (..., k, k) from their lower triangles, row by row (..., p)."""
    values = np.asarray(values)
    k = int(np.sqrt(2 * values.shape[-1]))
    rows, columns = np.tril_indices(k)
    full = np.zeros((*values.shape[:-1], k, k))
    full[..., rows, columns] = full[..., columns, rows] = values
    return full
