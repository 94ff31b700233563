"""Packed covariances as they are stored: float32, with zeros for factors that are off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .packed import packed_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .covariances import Packed


def differ_by_row(params: Mapping[str, Any]) -> bool:
    """Whether a fit with these arguments has a covariance of its own for each cell and gene, for the Normal."""
    return params.get("observed", "all") == "stored" or "held_out" in params


def stored_bytes(n_factors: int, n_rows: int) -> int:
    """Bytes that packed covariances of so many rows take."""
    return packed_size(n_factors + 1) * n_rows * np.dtype(np.float32).itemsize


def _kept(rows: Tensor) -> Tensor:
    """Positions in a packed matrix of the rows and columns that are kept."""
    first, second = torch.tril_indices(len(rows), len(rows), device=rows.device)
    return rows[first] & rows[second]


def read_packed(values: Any, rows: Tensor) -> Tensor:
    """Packed covariances of the active factors."""
    stored = torch.as_tensor(np.asarray(values, dtype=np.float32), device=rows.device)
    return stored if bool(rows.all()) else stored[:, _kept(rows)]


def padded_packed(cov: Packed, active: np.ndarray) -> np.ndarray:
    """Packed covariances with zeros for factors that are off, float32."""
    kept = _kept(torch.from_numpy(np.concatenate([[True], active]))).numpy()
    full = np.zeros((len(cov.values), len(kept)), dtype=np.float32)
    full[:, kept] = cov.values.detach().cpu().numpy()
    return full
