"""Cells of several AnnData in one: a fit is kept where all of them are its own, and is refused where they are not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scvi_lfm as lfm

MERGES = ("same", "unique", "first", "only")
TOOLS = {
    "rank_genes": lambda adata: lfm.tl.rank_genes(adata, mask_obs=np.arange(adata.n_obs) < 20),
    "rank_cells": lambda adata: lfm.tl.rank_cells(adata, "gene_7"),
    "anomalies": lfm.tl.anomalies,
    "check": lambda adata: lfm.tl.check(adata, refit=False),
    "predict": lambda adata: lfm.tl.predict(adata, obs_names="cell_140", var_names="gene_7"),
    "sample_posterior": lambda adata: lfm.tl.sample_posterior(adata, 1),
}


@pytest.fixture(scope="module")
def reference(fitted):
    return fitted[:120].copy()


@pytest.fixture(scope="module")
def query(fitted, reference):
    """The other cells with half of the genes, of which the reference can say less."""
    new = ad.AnnData(fitted.X[120:, :40], obs=fitted.obs[["group"]].iloc[120:], var=fitted.var[[]].iloc[:40])
    with pytest.warns(UserWarning, match="40 of 80 fitted genes are absent"):
        lfm.tl.project(new, reference)
    return new


def sd(adata):
    return lfm.tl.predict(adata, obs_names="cell_140", var_names="gene_7")["sd"].item()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_query_does_not_take_the_covariance_of_its_reference(reference, query, tool):
    joined = ad.concat([reference, query], merge="first", uns_merge="first")
    with pytest.raises(ValueError, match=r"30 of 150 cell\(s\), first 'cell_120', .*of other cells.*lfm\.tl\.project"):
        TOOLS[tool](joined)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", ["query", "fit of its own"])
def test_no_way_of_merging_gives_a_query_another_uncertainty(fitted, reference, query, kind, merge):
    other = query
    if kind != "query":
        other = ad.AnnData(fitted.X[120:], obs=fitted.obs[["group"]].iloc[120:], var=fitted.var[[]])
        lfm.tl.fit(other, 3, progress=False)
    joined = ad.concat([reference, other], merge=merge, uns_merge=merge)
    with pytest.raises((ValueError, KeyError), match=r"joined.*lfm\.tl\.project\(adata, reference") as caught:
        sd(joined)
    assert "ad.concat" in str(caught.value)


def test_what_the_message_advises_works(reference, query):
    joined = ad.concat([reference, query], merge="first", uns_merge="first")
    with pytest.warns(UserWarning, match="40 of 80 fitted genes are absent"):
        lfm.tl.project(joined, reference, key="lfm", key_added="lfm_joined")
    got = lfm.tl.predict(joined, obs_names="cell_140", var_names="gene_7", key="lfm_joined")["sd"].item()
    assert got == pytest.approx(sd(query), rel=1e-5)
    # half of the genes, about half the precision
    assert query.obsm["X_lfm_sd"].mean() > 1.1 * reference.obsm["X_lfm_sd"].mean()


@pytest.mark.parametrize("merge", ["same", "unique", "first"])
def test_parts_of_one_fitted_anndata_keep_their_fit(fitted, merge):
    joined = ad.concat([fitted[:50], fitted[50:]], merge=merge, uns_merge=merge)
    assert sd(joined) == sd(fitted)


def test_counts_bring_the_covariance_of_every_cell():
    adata = lfm.datasets.simulate(60, 30, 2, likelihood="poisson", mu=1)
    reference = adata[:40].copy()
    new = ad.AnnData(adata.X[40:], obs=adata.obs[[]].iloc[40:], var=adata.var[[]])
    lfm.tl.fit(reference, 2, progress=False)
    lfm.tl.project(new, reference)
    joined = ad.concat([reference, new], merge="same", uns_merge="same")
    names = {"obs_names": "cell_50", "var_names": "gene_7"}
    assert lfm.tl.predict(joined, **names)["sd"].item() == lfm.tl.predict(new, **names)["sd"].item()


def test_a_plain_concatenation_is_told_what_keeps_a_fit(fitted):
    joined = ad.concat([fitted[:50], fitted[50:]])
    with pytest.raises(KeyError, match=r"uns has no 'lfm'.*merge='same', uns_merge='same'.*fitted or placed apart"):
        lfm.tl.rank_genes(joined, "group")
    with pytest.raises(KeyError, match=r"var has no 'lfm_b'.*Run lfm\.tl\.fit.*merge='same', uns_merge='same'"):
        sd(ad.concat([fitted[:50], fitted[50:]], uns_merge="same"))


@pytest.mark.parametrize("container", ["obs", "obsm", "var", "varm"])
def test_a_standard_deviation_that_was_changed_is_named(fitted, container):
    adata = fitted.copy()
    name = {"obs": "lfm_a_sd", "obsm": "X_lfm_sd", "var": "lfm_b_sd", "varm": "lfm_sd"}[container]
    values = np.array(getattr(adata, container)[name])
    values[5] *= 1.01
    getattr(adata, container)[name] = values
    with pytest.raises(ValueError, match=rf"1 of \d+ (cell|gene)\(s\), first '(cell|gene)_5'.*{name}"):
        lfm.tl.predict(adata, obs_names="cell_1", var_names="gene_1")


def test_genes_without_an_embedding_are_named(fitted):
    adata = fitted.copy()
    adata.varm["lfm"] = np.where(np.arange(80)[:, None] == 5, np.nan, adata.varm["lfm"])
    with pytest.raises(ValueError, match=r"1 of 80 gene\(s\), first 'gene_5'"):
        lfm.tl.similar_genes(adata, "gene_1")


def test_standard_deviations_may_be_dropped(fitted):
    adata = fitted.copy()
    del adata.obsm["X_lfm_sd"], adata.varm["lfm_sd"]
    assert sd(adata) == sd(fitted)
