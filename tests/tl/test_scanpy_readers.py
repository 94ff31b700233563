"""What scanpy reads and draws of a ranking."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc

import scvi_lfm as lfm
from scvi_lfm.tl._rank_genes import RANKBY

KEY = "rank_genes_lfm"
GROUPS = ("low", "middle", "high")
FROM_VALUES = ("dotplot", "matrixplot", "heatmap", "stacked_violin", "tracksplot")


@pytest.fixture(scope="module", params=[RANKBY[0], pytest.param(RANKBY[1], marks=pytest.mark.slow)])
def ranked(request, fitted, tmp_path_factory):
    """A ranking in either order that went through a file. Shared: copy before writing into it."""
    adata = fitted.copy()
    # as if the values were logarithms, which have fold changes
    adata.uns["lfm"]["values"] = adata.uns["lfm"]["values"] | {"log_base": np.e}
    lfm.tl.rank_genes(adata, "group", rankby=request.param)
    # else each plot computes one, from principal components of its own
    sc.tl.dendrogram(adata, "group", use_rep="X_lfm")
    path = tmp_path_factory.mktemp("ranked") / "ranked.h5ad"
    adata.write_h5ad(path)
    return ad.read_h5ad(path)


def test_columns_that_scanpy_asks_for_hold_nothing(ranked):
    stored = ranked.uns[KEY]
    assert set(stored) == {"names", "scores", "logfoldchanges", "sd", "lfsr", "pvals", "pvals_adj", "params"}
    for name in ("pvals", "pvals_adj"):
        assert stored[name].dtype.names == GROUPS
        assert all(len(stored[name][group]) == ranked.n_vars for group in GROUPS)
        assert all(np.isnan(stored[name][group]).all() for group in GROUPS)
    assert not lfm.get.rank_genes_df(ranked).isna().any(axis=None)


def test_params_are_those_of_scanpy(fitted):
    adata = fitted.copy()
    adata.layers["values"] = adata.X
    lfm.tl.fit(adata, 2, layer="values", progress=False)
    lfm.tl.rank_genes(adata, "group")
    assert {"groupby", "reference", "method", "use_raw", "layer"} <= set(adata.uns[KEY]["params"])
    assert adata.uns[KEY]["params"]["layer"] == "values"


@pytest.mark.parametrize("group", [None, "high", ["middle", "low"]])
def test_scanpys_table_is_ours(ranked, group):
    theirs = sc.get.rank_genes_groups_df(ranked, group, key=KEY)
    ours = lfm.get.rank_genes_df(ranked, group)
    columns = [name for name in ("group", "names", "scores", "logfoldchanges") if name in ours]
    for name in columns:
        assert theirs[name].tolist() == ours[name].tolist(), name
    assert len(sc.get.rank_genes_groups_df(ranked, "high", key=KEY, pval_cutoff=0.05)) == 0


@pytest.mark.parametrize(
    "plot", [*FROM_VALUES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in FROM_VALUES[2:])]
)
def test_plots_of_values_show_the_best_genes_of_each_group(ranked, plot):
    draw = getattr(sc.pl, f"rank_genes_groups_{plot}")
    draw(ranked.copy(), key=KEY, n_genes=2, show=False)
    labels = {text.get_text() for text in plt.gcf().findobj(plt.Text)}
    best = {name for group in GROUPS for name in ranked.uns[KEY]["names"][group][:2]}
    assert best | set(GROUPS) <= labels


@pytest.mark.parametrize("values", ["scores", "logfoldchanges"])
def test_dots_take_the_colours_of_what_was_stored(ranked, values):
    plot = sc.pl.rank_genes_groups_dotplot(
        ranked.copy(), key=KEY, n_genes=2, values_to_plot=values, dendrogram=False, return_fig=True
    )
    stored = lfm.get.rank_genes_df(ranked).pivot(index="group", columns="names", values=values)
    drawn = plot.dot_color_df
    np.testing.assert_allclose(drawn, stored.loc[drawn.index, drawn.columns])


@pytest.mark.filterwarnings("ignore:set_ticklabels:UserWarning")  # scanpy's own
@pytest.mark.parametrize("reference", ["rest", "low", None])
def test_violins(ranked, reference):
    adata = ranked.copy()
    lfm.tl.rank_genes(adata, "group", groups=["high"], reference=reference)
    axes = sc.pl.rank_genes_groups_violin(adata, key=KEY, n_genes=2, show=False)
    assert axes[0].get_title() == f"high vs. {'average' if reference is None else reference}"


def test_the_ranking_of_a_mask_is_drawn_by_any_column(fitted):
    adata = fitted.copy()
    lfm.tl.rank_genes(adata, mask_obs="is_high")
    best = set(adata.uns[KEY]["names"]["selected"][:3])
    plot = sc.pl.rank_genes_groups_dotplot(
        adata, key=KEY, n_genes=3, groupby="group", dendrogram=False, return_fig=True
    )
    assert set(plot.dot_color_df.columns) == best


def test_scanpys_filter_and_overlap(ranked):
    adata = ranked.copy()
    adata.X = adata.X.clip(min=0)
    best = adata.uns[KEY]["names"]["high"][:3]
    overlap = sc.tl.marker_gene_overlap(adata, {"best": set(best)}, key=KEY, top_n_markers=3)
    assert overlap.loc["best", "high"] == 3
    sc.tl.filter_rank_genes_groups(
        adata, key=KEY, key_added="filtered", min_in_group_fraction=0.3, max_out_group_fraction=1, min_fold_change=0
    )
    kept = sc.get.rank_genes_groups_df(adata, "high", key="filtered")["names"].dropna()
    assert 0 < len(kept) < adata.n_vars
    assert lfm.get.rank_genes_df(adata, "high", key="filtered")["names"].tolist() == kept.tolist()
