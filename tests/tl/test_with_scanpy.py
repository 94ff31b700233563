from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc


@pytest.mark.slow  # numba compiles UMAP, 25 s
def test_neighbours_umap_and_leiden_run_on_the_embedding(pbmc_fitted):
    adata = pbmc_fitted.copy()
    sc.pp.neighbors(adata, use_rep="X_lfm", n_neighbors=15)
    sc.tl.umap(adata, maxiter=50)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    assert np.isfinite(adata.obsm["X_umap"]).all()
    assert adata.obs["leiden"].nunique() > 3
    # clusters follow the sorted types that are far from each other
    purity = adata.obs.groupby("leiden", observed=True)["facs_subpop"].agg(lambda types: types.value_counts().iloc[0])
    assert purity.sum() / adata.n_obs > 0.8


@pytest.mark.parametrize("field", ["lfm_a", "X_lfm", "lfm"])
def test_scanpy_draws_the_fields(pbmc_fitted, field):
    adata = pbmc_fitted.copy()
    if field == "lfm_a":
        sc.pl.violin(adata, field, show=False)
    elif field == "X_lfm":
        sc.pl.embedding(adata, field, color="facs_subpop", show=False)
    else:
        sc.pl.scatter(adata, x="lfm_b", y="lfm_sigma", show=False)
