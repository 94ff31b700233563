"""The order of genes: by scores, or by scores over their standard deviations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.posterior.contrast import Contrast

KEY = "rank_genes_lfm"


@pytest.fixture
def adata(fitted):
    return fitted.copy()


def by_gene(adata, group):
    return lfm.get.rank_genes_df(adata, group).set_index("names").sort_index()


@pytest.mark.parametrize("reference", ["rest", "middle", None])
def test_only_the_order_is_another(adata, reference):
    lfm.tl.rank_genes(adata, "group", groups=["high", "low"], reference=reference)
    first = {group: by_gene(adata, group) for group in ("high", "low")}
    usual = adata.uns[KEY]["names"].copy()
    lfm.tl.rank_genes(adata, "group", groups=["high", "low"], reference=reference, rankby="scores/sd")
    assert adata.uns[KEY]["params"]["rankby"] == "scores/sd"
    for group, expected in first.items():
        pd.testing.assert_frame_equal(by_gene(adata, group), expected)
        table = lfm.get.rank_genes_df(adata, group)
        assert (np.diff(table.eval("scores / sd")) <= 1e-4).all()  # of what is stored in float32
        assert table["names"].tolist() != usual[group].tolist()
        assert (np.diff(table["scores"]) > 0).any()


def test_genes_that_are_higher_come_in_the_order_of_their_false_sign_rates(adata):
    lfm.tl.rank_genes(adata, "group", groups=["high"], rankby="scores/sd")
    table = lfm.get.rank_genes_df(adata, "high")
    higher = table["scores"] > 0
    assert higher.any()
    assert not higher.all()
    assert table.loc[higher, "lfsr"].is_monotonic_increasing
    assert table.loc[~higher, "lfsr"].is_monotonic_decreasing


def test_a_gene_without_score_and_spread_has_its_place():
    contrast = Contrast(torch.tensor([0.0, -1.0, 2.0]), torch.tensor([0.0, 0.5, 4.0]))
    assert contrast.in_sds.tolist() == [0, -2, 0.5]


@pytest.mark.parametrize("wrong", ["score", "wilcoxon", None, 1, ["scores"]])
def test_what_is_no_order_is_refused_before_anything_is_written(adata, wrong):
    with pytest.raises(ValueError, match=r"`rankby` must be one of 'scores', 'scores/sd', found "):
        lfm.tl.rank_genes(adata, "group", rankby=wrong)
    assert KEY not in adata.uns


def test_the_picture_says_what_the_order_is(adata):
    lfm.tl.rank_genes(adata, "group", groups=["high"], rankby="scores/sd")
    (axes,) = lfm.pl.rank_genes(adata, n_genes=5, show=False)
    assert [label.get_text() for label in axes.get_yticklabels()] == adata.uns[KEY]["names"]["high"][:5].tolist()
    assert axes.get_xlabel().endswith("\nin the order of scores/sd")


def test_rankings_of_before_are_drawn(adata):
    lfm.tl.rank_genes(adata, "group", groups=["high"])
    del adata.uns[KEY]["params"]["rankby"]
    (axes,) = lfm.pl.rank_genes(adata, n_genes=5, show=False)
    assert axes.get_xlabel().endswith("with 95% posterior interval")
