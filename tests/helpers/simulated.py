"""What simulated data were drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata as ad
    import numpy as np


def true_eta(adata: ad.AnnData) -> np.ndarray:
    """The true eta of a data set from `lfm.datasets.simulate`."""
    margins = adata.uns["mu"] + adata.obs["a"].to_numpy()[:, None] + adata.var["b"].to_numpy()
    return margins + adata.obsm["A"] @ adata.varm["B"].T
