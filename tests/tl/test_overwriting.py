"""A result replaces an earlier one of the same tool, and no field of a fit, nothing that a fit read, nothing else."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm._keys import DEFAULT_KEYS

# fits stop early here: what is asked is where they go
pytestmark = pytest.mark.filterwarnings("ignore:The fit did not converge")
N, M = 40, 30


@pytest.fixture(scope="module")
def complete():
    """Two fits, one with a covariate and of a layer with entries held out, and the result of every tool."""
    adata = lfm.datasets.simulate(N, M, 2, likelihood="poisson", mu=1)
    adata.layers["counts"] = adata.X.copy()
    adata.layers["raw"] = adata.X.copy()
    adata.obs["score"] = np.linspace(0, 1, N)
    adata.obs["chosen"] = np.arange(N) % 2 == 0
    lfm.tl.hold_out(adata)
    lfm.tl.fit(adata, 2, layer="counts", held_out="held_out", max_epochs=1, progress=False)
    lfm.tl.fit(adata, 2, likelihood="poisson", covariates="score", key_added="other", max_epochs=1, progress=False)
    lfm.tl.rank_genes(adata, mask_obs="chosen")
    lfm.tl.rank_cells(adata, "gene_1")
    lfm.tl.anomalies(adata)
    lfm.tl.predict(adata, layer_added="expected")
    lfm.tl.hold_out(adata, by="rows", key_added="test")
    lfm.tl.hold_out(adata, by="molecules", key_added="thinned")
    lfm.tl.project(adata, adata[:, :20].copy(), key_added="placed")
    return adata


@pytest.fixture
def adata(complete):
    return complete.copy()


CALLS = {
    "fit": lambda adata, key: lfm.tl.fit(adata, 2, max_epochs=1, key_added=key, progress=False),
    "project": lambda adata, key: lfm.tl.project(adata, adata[:, :20].copy(), key_added=key),
    "rank_genes": lambda adata, key: lfm.tl.rank_genes(adata, mask_obs="chosen", key_added=key),
    "rank_cells": lambda adata, key: lfm.tl.rank_cells(adata, "gene_2", key_added=key),
    "anomalies": lambda adata, key: lfm.tl.anomalies(adata, key_added=key),
    "predict": lambda adata, key: lfm.tl.predict(adata, layer_added=key),
    "hold_out": lambda adata, key: lfm.tl.hold_out(adata, key_added=key),
    "hold_out, rows": lambda adata, key: lfm.tl.hold_out(adata, by="rows", key_added=key),
    "hold_out, molecules": lambda adata, key: lfm.tl.hold_out(adata, by="molecules", key_added=key),
}

REFUSED = [
    # what a fit read
    ("predict", "counts", "layers['counts'] was read by the fit 'lfm' and would be"),
    ("predict", "held_out", "layers['held_out'] was read by the fit 'lfm' and would be"),
    ("hold_out", "counts", "layers['counts'] was read by the fit 'lfm' and would be"),
    ("rank_cells", "score", "obs['score'] was read by the fit 'other' and would be"),
    ("anomalies", "score", "obs['score'] was read by the fit 'other' and would be"),
    # fields of a fit
    ("rank_cells", "lfm_a", "obs['lfm_a'] is a field of the fit 'lfm', which would be"),
    ("rank_cells", "lfm_size_factor", "obs['lfm_size_factor'] is a field of the fit 'lfm', which would be"),
    ("anomalies", "other_b", "var['other_b'] is a field of the fit 'other', which would be"),
    ("anomalies", "lfm", "uns['lfm'] holds a fit, which would be"),
    ("rank_genes", "other", "uns['other'] holds a fit, which would be"),
    ("hold_out, rows", "lfm_a_sd", "obs['lfm_a_sd'] is a field of the fit 'lfm', which would be"),
    ("fit", "lfm_cov", "varm['lfm_cov'] is a field of the fit 'lfm', which would be"),
    ("fit", "other_beta", "varm['other_beta'] is a field of the fit 'other', which would be"),
    ("project", "lfm_sd", "obsm['X_lfm_sd'] is a field of the fit 'lfm', which would be"),
    ("project", "lfm", "uns['lfm'] was written by lfm.tl.fit and would be"),
    ("fit", "placed", "uns['placed'] was written by lfm.tl.project and would be"),
    # results of other tools
    ("predict", "thinned_train", "layers['thinned_train'] was written by lfm.tl.hold_out and would be"),
    ("hold_out", "expected", "layers['expected'] was written by lfm.tl.predict and would be"),
    ("anomalies", "rank_genes_lfm", "uns['rank_genes_lfm'] was written by lfm.tl.rank_genes and would be"),
    ("rank_cells", "lfm_anomaly", "obs['lfm_anomaly'] was written by lfm.tl.anomalies and would be"),
    ("rank_genes", "lfm_written", "uns['lfm_written'] says which tool wrote what and would be"),
    # what is the user's own
    ("predict", "raw", "layers['raw'] was not written by lfm.tl.predict and would be"),
    ("hold_out, molecules", "raw", "layers['raw'] was not written by lfm.tl.hold_out and would be"),
    ("hold_out, rows", "chosen", "obs['chosen'] was not written by lfm.tl.hold_out and would be"),
    ("rank_cells", "chosen", "obs['chosen'] was not written by lfm.tl.rank_cells and would be"),
    ("anomalies", "chosen", "obs['chosen'] was not written by lfm.tl.anomalies and would be"),
]


@pytest.mark.parametrize(("tool", "key", "message"), REFUSED, ids=lambda value: value.split(" ")[0])
def test_what_is_not_an_earlier_result_is_refused(adata, monkeypatch, tool, key, message):
    def no_work(*_, **__):
        raise AssertionError

    if not tool.startswith("hold_out"):  # where the same values may be written again
        for name in ("_fit.prepare_fit", "_open.read_fit"):
            monkeypatch.setattr(f"scvi_lfm.tl.{name}", no_work)
    before = adata.copy()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        CALLS[tool](adata, key)
    argument = "layer_added" if tool == "predict" else "key_added"
    suggested = re.search(rf"Pass another {argument}, such as '(\w+)'", str(caught.value)).group(1)
    assert suggested != key
    for container in ("obs", "var", "obsm", "varm", "layers", "uns"):
        assert set(getattr(adata, container)) == set(getattr(before, container))
    np.testing.assert_array_equal(adata.obs["lfm_a"], before.obs["lfm_a"])


FREE = {tool: f"my_{tool.split(',')[0]}" for tool in CALLS}


@pytest.mark.parametrize("file", [None, "h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_a_call_may_be_made_again(adata, file, tmp_path):
    for tool, call in CALLS.items():
        call(adata, FREE[tool])
    if file:
        getattr(adata, f"write_{file}")(path := tmp_path / f"again.{file}")
        adata = getattr(ad, f"read_{file}")(path)
    for tool, call in CALLS.items():
        call(adata, FREE[tool])


def test_a_call_may_be_made_again_where_nothing_was_noted(adata):
    """Of an earlier version: by what results look like, or by the tool's default key."""
    del adata.uns["lfm_written"], adata.uns["placed"]
    for tool in ("fit", "rank_genes", "rank_cells", "anomalies"):
        CALLS[tool](adata, DEFAULT_KEYS[tool])
    new = adata[:20].copy()
    del new.uns["lfm_written"]
    lfm.tl.project(new, adata)
    for tool in ("rank_genes", "rank_cells", "anomalies", "fit"):
        key = f"old_{tool}"
        CALLS[tool](adata, key)
        del adata.uns["lfm_written"]
        CALLS[tool](adata, key)


def test_cells_that_lost_their_fit_may_be_fitted_again(adata):
    joined = ad.concat([adata[: N // 2], adata[N // 2 :]])
    assert not joined.uns
    for key in ("lfm", "other"):
        lfm.tl.fit(joined, 2, max_epochs=1, key_added=key, progress=False)
    joined.obs["third_a"] = 1.0
    with pytest.raises(ValueError, match=r"obs\['third_a'\] was not written by lfm\.tl\.fit and would be overwritten"):
        lfm.tl.fit(joined, 2, key_added="third", progress=False)


def test_a_mask_that_a_fit_used_may_be_drawn_again_and_no_other(adata):
    before = adata.layers["held_out"].copy()
    lfm.tl.hold_out(adata)
    assert (adata.layers["held_out"] != before).nnz == 0
    with pytest.raises(ValueError, match=r"layers\['held_out'\] was read by the fit 'lfm' and would be overwritten"):
        lfm.tl.hold_out(adata, rng=1)
    assert (adata.layers["held_out"] != before).nnz == 0


def test_a_fit_does_not_overwrite_its_own_covariate(adata):
    with pytest.raises(ValueError, match=r"obs\['lfm_a'\] is read by this call and would be overwritten"):
        lfm.tl.fit(adata, 2, covariates=["lfm_a"], progress=False)


def test_predictions_are_as_they_were_after_every_refusal(adata):
    before = lfm.tl.predict(adata, obs_names="cell_3", var_names="gene_4")
    for tool, key, _ in REFUSED:
        with pytest.raises(ValueError, match="would be overwritten"):
            CALLS[tool](adata, key)
    np.testing.assert_array_equal(lfm.tl.predict(adata, obs_names="cell_3", var_names="gene_4")["sd"], before["sd"])


def test_the_note_names_what_is_there(adata):
    noted = adata.uns["lfm_written"]
    assert noted["layers"] == {
        "held_out": "hold_out",
        "expected": "predict",
        "thinned": "hold_out",
        "thinned_train": "hold_out",
    }
    assert noted["obsm"] | noted["varm"] == {
        **dict.fromkeys(["X_lfm", "X_lfm_sd", "lfm_cov", "lfm", "lfm_sd"], "fit"),
        **dict.fromkeys(["X_other", "X_other_sd", "other_cov", "other", "other_sd"], "fit"),
        **dict.fromkeys(["other_beta", "other_beta_sd"], "fit"),
        **dict.fromkeys(["X_placed", "X_placed_sd", "placed_cov", "placed", "placed_sd"], "project"),
    }
    for container, names in noted.items():
        assert set(names) <= set(getattr(adata, container))
