"""Whether the rows of an AnnData are those that the record of its fit speaks of.

`anndata.concat` joins cells with their embeddings, and keeps of `uns`, `var` and `varm` nothing, or what one part had.
Where cells share their covariance, that of one part is then not that of the others, which their stored standard
deviations tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .lookup import numbers
from .schema import FIELD

if TYPE_CHECKING:
    from torch import Tensor

    from ...linalg.covariances import Covariance
    from .field_reader import FieldReader

# standard deviations are stored in float32, and so is the noise that some follow from: a few times 6e-8
ROUNDING = 1e-5


def check_present(stored: FieldReader, cell_mean: np.ndarray) -> None:
    """Raise if cells have no embedding."""
    missing = ~np.isfinite(cell_mean).all(axis=1)
    if missing.any():
        msg = (
            f"{int(missing.sum())} cell(s) have no values in {stored.place('cell_factors')} and "
            f"{stored.place('cell_activity')}, first {stored.adata.obs_names[missing][0]!r}. Were they joined to the "
            "fitted ones? Place them with lfm.tl.project, or leave them out."
        )
        raise ValueError(msg)


def check_cells_fit_record(stored: FieldReader, cov: Covariance) -> None:
    """Raise if cells have other standard deviations than the covariance that is stored for them gives."""
    if not cov.is_held:
        return  # from the cell's own fields
    adata, key = stored.adata, stored.key
    sd = _stored(stored, "cell_activity_sd", "cell_factors_sd")
    wrong = _differ(sd, cov.diagonals(), stored.layout.n_known)
    if wrong.any():
        msg = (
            f"{int(wrong.sum())} of {adata.n_obs} cell(s), first {adata.obs_names[wrong][0]!r}, have standard "
            f"deviations in {stored.place('cell_activity_sd')} and {stored.place('cell_factors_sd')} that do not "
            f"follow from the covariance of the fit {key!r}: it is that of other cells. Were cells joined that were "
            "fitted or placed apart (ad.concat with uns_merge=)? Place all of them with lfm.tl.project(adata, "
            f"reference, key={key!r}, key_added={key + '_joined'!r}), or use the parts one by one."
        )
        raise ValueError(msg)


def check_genes_fit_record(stored: FieldReader, cov: Covariance, gene_mean: np.ndarray) -> None:
    """Raise if genes have other standard deviations than the covariance that is stored for them gives."""
    adata, fitted = stored.adata, stored.layout.fitted
    sd = _stored(stored, "gene_abundance_sd", "gene_factors_sd")
    # of genes that were left out of the fit, everything is missing
    wrong = np.zeros(adata.n_vars, dtype=bool) if sd[0] is None else ~fitted & np.isfinite(sd[0]).any(axis=1)
    of_fitted = [None if part is None else part[fitted] for part in sd]
    wrong[fitted] = _differ(of_fitted, cov.diagonals(), stored.layout.n_known)
    wrong[fitted] |= ~np.isfinite(gene_mean).all(axis=1)
    if wrong.any():
        msg = (
            f"{int(wrong.sum())} of {adata.n_vars} gene(s), first {adata.var_names[wrong][0]!r}, have values in "
            f"{stored.place('gene_abundance_sd')} and {stored.place('gene_factors_sd')} that do not follow from the "
            f"other fields of the fit {stored.key!r}: some are of another fit (ad.concat with merge=, uns_merge=) or "
            "were changed since. Go back to the parts, or run lfm.tl.fit again."
        )
        raise ValueError(msg)


def _stored(stored: FieldReader, *names: str) -> list[np.ndarray | None]:
    """Standard deviations of (a, A) or (b, B), (rows, .) each, of factors that are on; None where they were taken out.

    Of whatever shape, since a wrong one tells of another fit.
    """
    parts: list[np.ndarray | None] = []
    active = stored.layout.active
    for name in names:
        values = numbers(stored.adata, FIELD[name].frame, stored.where(name)) if stored.has(name) else None
        if values is not None:
            values = values[:, None] if values.ndim == 1 else values
            whole = FIELD[name].shape[1:] == ("r",) and values.shape[1] == len(active)
            values = values[:, active] if whole else values
        parts.append(values)
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
