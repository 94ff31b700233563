"""Whether the rows of an AnnData are those that the record of its fit speaks of.

`anndata.concat` joins cells with their embeddings, and keeps of `uns`, `var` and `varm` nothing, or what one part had.
Where cells share their covariance, that of one part is then not that of the others, which their stored standard
deviations tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..recomputed import Recomputed
from .lookup import numbers

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from ..._keys import FitKeys
    from ...linalg.covariances import Covariance

# standard deviations are stored in float32, and so is the noise that some follow from: a few times 6e-8
ROUNDING = 1e-5


def check_present(adata: AnnData, cell_mean: np.ndarray, keys: FitKeys) -> None:
    """Raise if cells have no embedding."""
    missing = ~np.isfinite(cell_mean).all(axis=1)
    if missing.any():
        msg = (
            f"{int(missing.sum())} cell(s) have no values in obsm[{keys.cell_factors!r}] and "
            f"obs[{keys.cell_activity!r}], first {adata.obs_names[missing][0]!r}. Were they joined to the fitted ones? "
            "Place them with lfm.tl.project, or leave them out."
        )
        raise ValueError(msg)


def check_cells_fit_record(adata: AnnData, keys: FitKeys, cov: Covariance, active: np.ndarray, n_known: int) -> None:
    """Raise if cells have other standard deviations than the covariance that is stored for them gives."""
    if isinstance(cov, Recomputed):
        return  # from the cell's own fields
    stored = _stored(adata, ("obs", keys.cell_activity_sd), ("obsm", keys.cell_factors_sd), active)
    wrong = _differ(stored, cov.diagonals(), n_known)
    if wrong.any():
        msg = (
            f"{int(wrong.sum())} of {adata.n_obs} cell(s), first {adata.obs_names[wrong][0]!r}, have standard "
            f"deviations in obs[{keys.cell_activity_sd!r}] and obsm[{keys.cell_factors_sd!r}] that do not follow from "
            f"the covariance of the fit {keys.uns!r}: it is that of other cells. Were cells joined that were fitted "
            f"or placed apart (ad.concat with uns_merge=)? Place all of them with lfm.tl.project(adata, reference, "
            f"key={keys.uns!r}, key_added={keys.uns + '_joined'!r}), or use the parts one by one."
        )
        raise ValueError(msg)


def check_genes_fit_record(
    adata: AnnData, keys: FitKeys, cov: Covariance, active: np.ndarray, fitted: np.ndarray, gene_mean: np.ndarray
) -> None:
    """Raise if genes have other standard deviations than the covariance that is stored for them gives."""
    n_known = gene_mean.shape[1] - 1 - int(active.sum())
    stored = _stored(adata, ("var", keys.gene_abundance_sd), ("varm", keys.gene_factors_sd), active)
    # of genes that were left out of the fit, everything is missing
    wrong = np.zeros(adata.n_vars, dtype=bool) if stored[0] is None else ~fitted & np.isfinite(stored[0]).any(axis=1)
    wrong[fitted] = _differ([None if part is None else part[fitted] for part in stored], cov.diagonals(), n_known)
    wrong[fitted] |= ~np.isfinite(gene_mean).all(axis=1)
    if wrong.any():
        msg = (
            f"{int(wrong.sum())} of {adata.n_vars} gene(s), first {adata.var_names[wrong][0]!r}, have "
            f"values in var[{keys.gene_abundance_sd!r}] and varm[{keys.gene_factors_sd!r}] that do not follow from the "
            f"other fields of the fit {keys.uns!r}: some are of another fit (ad.concat with merge=, uns_merge=) or "
            "were changed since. Go back to the parts, or run lfm.tl.fit again."
        )
        raise ValueError(msg)


def _stored(
    adata: AnnData, scalar: tuple[str, str], vector: tuple[str, str], active: np.ndarray
) -> list[np.ndarray | None]:
    """Standard deviations of (a, A) or (b, B), (rows, .) each; None where they were taken out."""
    parts: list[np.ndarray | None] = []
    for container, name in (scalar, vector):
        there = name in getattr(adata, container)
        values = numbers(adata, container, name) if there else None
        parts.append(values[:, None] if values is not None and values.ndim == 1 else values)
    if parts[1] is not None and parts[1].shape[1] == len(active):
        parts[1] = parts[1][:, active]
    return parts


def _differ(stored: list[np.ndarray | None], variances: Tensor, n_known: int) -> np.ndarray:
    """Rows (rows,) whose standard deviations are not the roots of these variances (rows, 1 + n_known + r)."""
    with np.errstate(invalid="ignore"):
        expected = np.sqrt(variances.double().cpu().numpy())
    wrong = np.zeros(len(expected), dtype=bool)
    for values, of in zip(stored, (expected[:, :1], expected[:, 1 + n_known :]), strict=True):
        if values is not None:
            same = values.shape == of.shape and np.abs(values - of) <= ROUNDING * of
            wrong |= ~np.broadcast_to(same, of.shape).all(axis=1)
    return wrong
