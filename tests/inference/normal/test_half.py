"""A fit of blocks in half precision differs from one in single precision by the rounding of values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from scvi_lfm.data import batch, matrix


@pytest.mark.parametrize("noise", ["shared", "cell_gene"])
def test_eta_moves_no_more_than_values_are_rounded(monkeypatch, noise):
    """Half precision rounds a value by 2^-12 of it at the most, and eta is an average over many."""
    adata = lfm.datasets.simulate(300, 200, 3, likelihood="negative_binomial", mu=0.0, rng=0)
    adata.X = sp.csr_matrix(adata.X)

    def eta() -> np.ndarray:
        lfm.tl.fit(adata, 3, normalize=1e4, noise=noise, batch_size=100, max_epochs=10, tol=1e-12, progress=False)
        a, b = adata.obs["lfm_a"].to_numpy(), adata.var["lfm_b"].to_numpy()
        return adata.uns["lfm"]["mu"] + a[:, None] + b + adata.obsm["X_lfm"] @ adata.varm["lfm"].T

    def in_half(values: object, *args: object, half: bool) -> batch.Batch:
        return batch.Batch(values, *args, half=not isinstance(values, torch.Tensor))

    with pytest.warns(UserWarning, match="max_epochs"):
        single = eta()
    monkeypatch.setattr(matrix, "Batch", in_half)
    with pytest.warns(UserWarning, match="max_epochs"):
        half = eta()
    moved = half - single
    assert 0 < np.sqrt(np.mean(moved**2)) < 2**-12 * np.sqrt(np.mean(single**2))
