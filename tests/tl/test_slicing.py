"""Nothing that a fit stores goes stale when cells or genes are taken out: every tool is right, or refuses."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm

CELLS, GENES = np.arange(0, 150, 3), np.arange(5, 75, 2)


@pytest.fixture(scope="module")
def sliced(fitted):
    return fitted[CELLS][:, GENES].copy()


def columns(adata, group):
    stored = adata.uns["rank_genes_lfm"]
    frame = pd.DataFrame({name: stored[name][group] for name in ("names", "scores", "sd", "lfsr", "logfoldchanges")})
    return frame.set_index("names")


def test_rank_genes_of_some_genes_is_unchanged(fitted):
    some, everything = fitted[:, GENES].copy(), fitted.copy()
    for adata in (some, everything):
        lfm.tl.rank_genes(adata, "group")
    for group in ("low", "high"):
        result = columns(some, group)
        expected = columns(everything, group).loc[result.index]
        pd.testing.assert_frame_equal(result, expected, rtol=1e-6)


def test_rank_genes_of_some_cells_compares_these(fitted):
    some = fitted[CELLS].copy()
    lfm.tl.rank_genes(some, "group", groups=["high"], reference="low")
    everything = fitted.copy()
    names = np.where(np.isin(np.arange(150), CELLS), everything.obs["group"].astype(str), "absent")
    everything.obs["some"] = names
    lfm.tl.rank_genes(everything, "some", groups=["high"], reference="low")
    pd.testing.assert_frame_equal(columns(some, "high"), columns(everything, "high"), rtol=1e-6)


def test_rank_genes_against_the_average_cell_means_that_of_the_fit(fitted):
    some, everything = fitted[CELLS].copy(), fitted.copy()
    lfm.tl.rank_genes(some, mask_obs=some.obs["is_high"], reference=None)
    chosen = np.isin(np.arange(150), CELLS) & everything.obs["is_high"].to_numpy()
    lfm.tl.rank_genes(everything, mask_obs=chosen, reference=None)
    pd.testing.assert_frame_equal(columns(some, "selected"), columns(everything, "selected"), rtol=1e-6)


def test_rank_cells_and_similar_genes(fitted, sliced):
    some, everything = sliced.copy(), fitted.copy()
    for adata in (some, everything):
        lfm.tl.rank_cells(adata, ["gene_7", "gene_9"])
    for name in ("rank_cells_lfm", "rank_cells_lfm_sd", "rank_cells_lfm_lfsr"):
        np.testing.assert_allclose(some.obs[name], everything.obs[name].iloc[CELLS], rtol=1e-6)
    result = lfm.tl.similar_genes(sliced, "gene_7", n_top=100).set_index("names")
    expected = lfm.tl.similar_genes(fitted, "gene_7", n_top=100).set_index("names").loc[result.index]
    pd.testing.assert_frame_equal(result, expected, rtol=1e-9)


def test_predict_and_sample_posterior(fitted, sliced):
    names = {"obs_names": list(sliced.obs_names), "var_names": list(sliced.var_names)}
    pd.testing.assert_frame_equal(lfm.tl.predict(sliced, **names), lfm.tl.predict(fitted, **names), rtol=1e-9)
    draws = lfm.tl.sample_posterior(sliced, 500)
    np.testing.assert_allclose(draws["A"].mean(0), sliced.obsm["X_lfm"], atol=0.3)
    assert draws["B"].shape == (500, len(GENES), 3)


def test_anomalies_of_a_slice_score_its_entries_as_before(fitted, sliced):
    adata = fitted.copy()
    adata.X[CELLS[4], GENES[3]] += 9
    some = adata[CELLS][:, GENES].copy()
    tables = []
    for data in (adata, some):
        lfm.tl.anomalies(data, by="either", fdr=0.9)
        tables.append(lfm.get.anomalies_df(data).set_index(["cell", "gene"]))
    shared = tables[1].index.intersection(tables[0].index)
    assert (fitted.obs_names[CELLS[4]], fitted.var_names[GENES[3]]) in shared
    # q and lfdr are about the entries at hand; the scores are about one entry
    for name in ("y", "expected", "p", "log_ratio"):
        np.testing.assert_allclose(tables[1].loc[shared, name], tables[0].loc[shared, name], rtol=1e-3, atol=1e-5)


def test_project_onto_a_slice(fitted, sliced):
    new = fitted[:20].copy()
    lfm.tl.project(new, sliced, key_added="new")
    assert np.isfinite(new.obsm["X_new"]).all()
    assert np.isnan(np.delete(new.varm["new"], GENES, axis=0)).all()
    # fewer genes, less knowledge
    assert (new.obsm["X_new_sd"] > fitted.obsm["X_lfm_sd"][:20]).all()


@pytest.mark.parametrize(
    "write",
    [
        lambda adata: lfm.tl.rank_genes(adata, "group"),
        lambda adata: lfm.tl.rank_cells(adata, "gene_7"),
        lfm.tl.anomalies,
        lambda adata: lfm.tl.predict(adata, layer_added="eta"),
        lambda adata: lfm.tl.project(adata, adata.copy(), key_added="again"),
    ],
    ids=["rank_genes", "rank_cells", "anomalies", "predict", "project"],
)
def test_a_view_becomes_actual_and_its_parent_stays_as_it_was(fitted, write):
    parent = fitted.copy()
    view, expected = parent[CELLS][:, GENES], parent[CELLS][:, GENES].copy()
    with pytest.warns(ad.ImplicitModificationWarning):
        write(view)
    write(expected)
    assert not view.is_view
    for container in ("obs", "var", "uns", "layers", "obsm"):
        assert set(getattr(view, container)) == set(getattr(expected, container))
        assert set(getattr(parent, container)) == set(getattr(fitted, container))


def test_one_cell_and_one_gene(fitted):
    adata = fitted[3:4, 7:8].copy()
    lfm.tl.rank_genes(adata, mask_obs=np.ones(1, dtype=bool), reference=None)
    lfm.tl.rank_cells(adata, "gene_7")
    lfm.tl.anomalies(adata)
    assert lfm.tl.predict(adata, obs_names="cell_3", var_names="gene_7").shape == (1, 7)
    assert len(lfm.tl.similar_genes(adata, "gene_7")) == 0
    lfm.tl.project(fitted[:5, 7:8].copy(), adata, key_added="new")


def test_a_fit_whose_cells_were_replaced_says_so(fitted):
    joined = ad.concat([fitted[:50], fitted[50:]])
    with pytest.raises(KeyError, match=r"uns has no 'lfm'.*Run lfm\.tl\.fit\(adata\) first"):
        lfm.tl.rank_genes(joined, "group")
    overwritten = fitted.copy()
    overwritten.obsm["X_lfm"] = overwritten.obsm["X_lfm"][:, :2]
    with pytest.raises(ValueError, match=r"obsm\['X_lfm'\] has shape \(150, 2\), but the fit has 3 factors"):
        lfm.tl.rank_genes(overwritten, "group")
