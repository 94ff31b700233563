"""Cells coloured by a gene whose values lie in a file or in a dask array."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from on_disk import backed, lazy_hdf5, lazy_zarr


def in_dask(adata, _):
    dask = pytest.importorskip("dask.array")
    chunked = adata.copy()
    for values in (chunked.layers, None):
        array = dask.from_array(adata.X, chunks=(30, adata.n_vars), asarray=False)
        if values is None:
            chunked.X = array
        else:
            values["same"] = array
    return chunked


@pytest.mark.parametrize("layer", [None, "same"])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("source", [backed, lazy_hdf5, lazy_zarr, in_dask])
@pytest.mark.half_slow
def test_a_gene_has_the_colours_that_it_has_in_memory(adata, tmp_path, source, form, layer):
    values = adata.X[:, 4].copy()
    adata.X = form(adata.X)
    adata.layers["same"] = adata.X.copy()
    if layer:
        adata.uns["lfm"]["params"]["layer"] = layer
    panels = lfm.pl.factors(source(adata, tmp_path), ["gene_4", "group", "lfm_a"], show=False)
    for axes, expected in ((panels[0], values), (panels[2], adata.obs["lfm_a"])):
        points = axes.collections[-1]
        drawn = dict(zip(map(tuple, points.get_offsets().data), points.get_array(), strict=True))
        places = map(tuple, adata.obsm["X_lfm"][:, :2].astype(float))
        np.testing.assert_allclose([drawn[place] for place in places], expected)
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == ["A", "B", "C"]
