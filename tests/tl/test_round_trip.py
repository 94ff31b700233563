"""The AnnData is the model: after a file, every tool gives the same answer."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm


@pytest.fixture(scope="module")
def complete(fitted):
    """A fit with every option that leaves something in `params`, and the results of every tool."""
    adata = fitted.copy()
    adata.obs["type"] = np.where(adata.obs["is_high"], "CD4+/CD25 T Reg", "other (all)")
    adata.layers["values"] = adata.X
    adata.X[3, 20] += 10
    options = {"prior_scales": {"a": 0.3, "A": [1.0, 1.0, 2.0]}, "mask_var": np.arange(80) != 5, "layer": "values"}
    lfm.tl.fit(adata, 3, progress=False, **options)
    lfm.tl.rank_genes(adata, "type")
    lfm.tl.rank_genes(adata, mask_obs="is_high", key_added="by_mask")
    lfm.tl.rank_cells(adata, "gene_1")
    lfm.tl.anomalies(adata)
    return adata


@pytest.fixture(scope="module", params=["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def read(request, complete, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / f"fit.{request.param}"
    getattr(complete, f"write_{request.param}")(path)
    return getattr(ad, f"read_{request.param}")(path)


def test_fields_are_the_same(complete, read):
    for container in ("obsm", "varm", "layers"):
        before, after = getattr(complete, container), getattr(read, container)
        assert set(after) == set(before)
        for name in before:
            np.testing.assert_array_equal(after[name], before[name])
            assert after[name].dtype == before[name].dtype
    for frame in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(read, frame), getattr(complete, frame), check_categorical=False)
    same_values(complete.uns["lfm"], read.uns["lfm"])


def same_values(before, after):
    if isinstance(before, dict):
        assert set(after) == set(before)
        for name, value in before.items():
            same_values(value, after[name])
    else:
        np.testing.assert_array_equal(after, before)


def test_tables_are_the_same(complete, read):
    for key in ("rank_genes_lfm", "by_mask"):
        pd.testing.assert_frame_equal(lfm.get.rank_genes_df(read, key=key), lfm.get.rank_genes_df(complete, key=key))
        assert read.uns[key]["names"].dtype.names == complete.uns[key]["names"].dtype.names
    pd.testing.assert_frame_equal(lfm.get.anomalies_df(read), lfm.get.anomalies_df(complete))
    pd.testing.assert_frame_equal(lfm.get.elbo_df(read), lfm.get.elbo_df(complete))
    pd.testing.assert_frame_equal(lfm.get.factors_df(read), lfm.get.factors_df(complete))


def test_tools_give_the_same_bits(complete, read):
    results = []
    for adata in (complete.copy(), read.copy()):
        lfm.tl.rank_genes(adata, "type", reference=None, key_added="again")
        lfm.tl.rank_cells(adata, ["gene_1", "gene_8"], key_added="cells")
        lfm.tl.anomalies(adata, key_added="odd", direction="up")
        lfm.tl.predict(adata, layer_added="eta")
        new = lfm.tl.project(adata, adata, key_added="new", copy=True)
        draws = lfm.tl.sample_posterior(adata, 3)
        results.append(
            [
                lfm.get.rank_genes_df(adata, key="again")["sd"],
                adata.obs["cells"],
                adata.obs["odd"],
                lfm.get.anomalies_df(adata, key="odd")["log_ratio"],
                adata.layers["eta"],
                new.obsm["X_new"],
                draws["A"],
                draws["B"],
                lfm.tl.similar_genes(adata, "gene_1")["correlation"],
            ]
        )
    for before, after in zip(*results, strict=True):
        np.testing.assert_array_equal(before, after)


def test_params_can_be_passed_again(complete, read):
    params = read.uns["lfm"]["params"]
    names = (
        "n_factors",
        "layer",
        "noise",
        "family",
        "engine",
        "prior_scales",
        "batch_size",
        "max_epochs",
        "tol",
        "rng",
    )
    options = {name: params[name] for name in names if name in params}
    result = lfm.tl.fit(read, **options, mask_var=np.arange(80) != 5, progress=False, copy=True)
    np.testing.assert_array_equal(result.obsm["X_lfm"], complete.obsm["X_lfm"])
