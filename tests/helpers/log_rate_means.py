"""Means of eta from the fields of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata as ad
    import numpy as np


def eta(adata: ad.AnnData) -> np.ndarray:
    """Log rates at size factor one, (cells, genes)."""
    of_rows = adata.uns["lfm"]["mu"] + adata.obs["lfm_a"].to_numpy()[:, None] + adata.var["lfm_b"].to_numpy()
    return of_rows + adata.obsm["X_lfm"] @ adata.varm["lfm"].T
