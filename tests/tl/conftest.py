from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm

if TYPE_CHECKING:
    import anndata as ad


@dataclass(frozen=True)
class Fields:
    """What `tl.fit` stored, read without the package: the tests' own reader."""

    mu: float
    cells: np.ndarray  # (n, r+1): (a, A)
    cell_cov: np.ndarray  # S
    genes: np.ndarray  # (m, r+1): (b, B)
    basis: np.ndarray
    eig: np.ndarray
    sigma: float  # noise of the fit
    noise: np.ndarray  # (m,): s_j
    cell_prior_mean: np.ndarray
    cell_prior_cov: np.ndarray
    gene_prior_mean: np.ndarray
    gene_prior_cov: np.ndarray

    def gene_covs(self, sigma: np.ndarray | float) -> np.ndarray:
        """T_j under noise `sigma`, (m, r+1, r+1)."""
        spread = 1 / (self.eig / np.broadcast_to(sigma, len(self.genes))[:, None] ** 2 + 1)
        return np.einsum("ik,jk,lk->jil", self.basis, spread, self.basis)


@pytest.fixture
def nothing_is_read_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few values are, they are read where they lie."""
    monkeypatch.setattr("scvi_lfm.data.gate.MOST_BYTES_READ_IN", -1)


@pytest.fixture(scope="session")
def read_fields():
    def read(adata: ad.AnnData, key: str = "lfm") -> Fields:
        uns = adata.uns[key]
        return Fields(
            mu=uns["mu"],
            cells=np.column_stack([adata.obs[f"{key}_a"], adata.obsm[f"X_{key}"]]).astype(float),
            cell_cov=uns["cell_cov"],
            genes=np.column_stack([adata.var[f"{key}_b"], adata.varm[key]]).astype(float),
            basis=uns["gene_basis"],
            eig=uns["gene_eig"],
            sigma=uns["sigma"],
            noise=adata.var[f"{key}_sigma"].to_numpy(float),
            cell_prior_mean=uns["prior_cell_mean"],
            cell_prior_cov=uns["prior_cell_cov"],
            gene_prior_mean=uns["prior_gene_mean"],
            gene_prior_cov=uns["prior_gene_cov"],
        )

    return read


@pytest.fixture(scope="session")
def fitted() -> ad.AnnData:
    """150 cells of three groups x 80 genes with noise from 0.5 to 2, fitted. Shared: copy before writing into it."""
    adata = lfm.datasets.simulate(150, 80, 3, sigma=np.geomspace(0.5, 2, 80))
    leading = adata.obsm["A"][:, 0]
    adata.obs["group"] = pd.cut(leading, np.quantile(leading, [0, 0.2, 0.6, 1]), labels=["low", "middle", "high"])
    adata.obs["group"] = adata.obs["group"].fillna("low")
    adata.obs["is_high"] = adata.obs["group"] == "high"
    lfm.tl.fit(adata, 3, progress=False)
    return adata
