"""Packed covariances as they are stored: float32, with zeros for factors that are off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..linalg.packed import dimension, packed_size
from .fields import numbers

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor


def stored_bytes(n_factors: int, n_rows: int) -> int:
    """Bytes that packed covariances of so many rows take."""
    return packed_size(n_factors + 1) * n_rows * np.dtype(np.float32).itemsize


def _kept(rows: Tensor) -> Tensor:
    """Positions in a packed matrix of the rows and columns that are kept."""
    first, second = torch.tril_indices(len(rows), len(rows), device=rows.device)
    return rows[first] & rows[second]


def packed_with_known(cov: Tensor, n_known: int) -> Tensor:
    """Packed covariances of (a, A) as those of (a, zeta, A), with zeros for zeta."""
    if not n_known:
        return cov
    k = dimension(cov.shape[-1]) + n_known
    full = cov.new_zeros(*cov.shape[:-1], packed_size(k))
    full[..., _kept(_free(k, n_known, cov.device))] = cov
    return full


def packed_of_free(cov: Tensor, n_known: int) -> Tensor:
    """Packed covariances of (a, A) from those of (a, zeta, A)."""
    return cov[..., _kept(_free(dimension(cov.shape[-1]), n_known, cov.device))] if n_known else cov


def _free(k: int, n_known: int, device: torch.device) -> Tensor:
    position = torch.arange(k, device=device)
    return (position == 0) | (position > n_known)


def read_packed(
    adata: AnnData, container: str, name: str, rows: Tensor, kept: np.ndarray | slice = slice(None)
) -> Tensor:
    """Packed covariances of the active factors, for the cells or genes that are kept.

    Raises
    ------
    KeyError
        They are not there.
    ValueError
        They are not of these factors, or not finite.
    """
    values = numbers(adata, container, name, np.float32)
    expected = packed_size(len(rows))
    if values.ndim != 2 or values.shape[1] != expected or not np.isfinite(values[kept]).all():
        msg = (
            f"{container}[{name!r}] does not hold {expected} finite numbers in each row, as the fit stored there: it "
            "was changed or damaged since. Read another copy, or run lfm.tl.fit(adata) again."
        )
        raise ValueError(msg)
    stored = torch.as_tensor(values[kept], device=rows.device)
    return stored if bool(rows.all()) else stored[:, _kept(rows)]


def padded_packed(values: Tensor, rows: np.ndarray) -> np.ndarray:
    """Packed covariances with zeros for the rows and columns that are not kept, float32."""
    kept = _kept(torch.from_numpy(rows)).numpy()
    full = np.zeros((len(values), len(kept)), dtype=np.float32)
    full[:, kept] = values.detach().cpu().numpy()
    return full
