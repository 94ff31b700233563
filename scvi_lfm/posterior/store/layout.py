"""How arrays lie in the fields of a fit: zeros for factors that are off, NaN for genes that were not fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...linalg.packed import dimension, packed_part, packed_size
from ...model.priors import free_coordinates

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Rows, columns and coordinates of the stored arrays that a posterior has."""

    n_cells: int
    fitted: np.ndarray  # (m,) bool: genes that were fitted
    active: np.ndarray  # (r,) bool: factors that are on
    n_known: int  # p

    def kept(self, axis: str) -> np.ndarray:
        """Positions along an axis of the schema that the posterior has, as a mask."""
        if axis in {"cell_packed", "gene_packed"}:
            coordinates = self.kept("k") if axis == "gene_packed" else np.concatenate([[True], self.active])
            first, second = np.tril_indices(len(coordinates))
            return coordinates[first] & coordinates[second]
        return {
            "n": np.ones(self.n_cells, dtype=bool),
            "m": self.fitted,
            "r": self.active,
            "p": np.ones(self.n_known, dtype=bool),
            "k": np.concatenate([np.ones(1 + self.n_known, dtype=bool), self.active]),
        }[axis]

    def spread(self, values: np.ndarray, shape: tuple[str, ...], dtype: str) -> np.ndarray:
        """Stored form of an array of the posterior, in memory of its own."""
        of_posterior = values
        for axis, name in reversed(list(enumerate(shape))):
            kept = self.kept(name)
            if not kept.all():
                size = (*values.shape[:axis], len(kept), *values.shape[axis + 1 :])
                full = np.full(size, np.nan if name == "m" else 0, dtype=dtype)
                full[(slice(None),) * axis + (kept,)] = values
                values = full
        return values.astype(dtype, copy=values is of_posterior)

    def gather(self, stored: np.ndarray, shape: tuple[str, ...]) -> np.ndarray:
        """Array of the posterior from its stored form."""
        for axis, name in enumerate(shape):
            kept = self.kept(name)
            stored = stored if kept.all() else stored.compress(kept, axis)
        return stored


def stored_bytes(n_factors: int, n_rows: int) -> int:
    """Bytes that packed covariances of so many rows take."""
    return packed_size(n_factors + 1) * n_rows * np.dtype(np.float32).itemsize


def packed_with_known(cov: Tensor, n_known: int) -> Tensor:
    """Packed covariances of (a, A) as those of (a, zeta, A), with zeros for zeta."""
    if not n_known:
        return cov
    k = dimension(cov.shape[-1]) + n_known
    full = cov.new_zeros(*cov.shape[:-1], packed_size(k))
    full[..., packed_part(free_coordinates(k, n_known, cov.device))] = cov
    return full


def packed_of_free(cov: Tensor, n_known: int) -> Tensor:
    """Packed covariances of (a, A) from those of (a, zeta, A)."""
    free = free_coordinates(dimension(cov.shape[-1]), n_known, cov.device)
    return cov[..., packed_part(free)] if n_known else cov
