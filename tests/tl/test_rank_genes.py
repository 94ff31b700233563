from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy.stats import norm

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit, write_fit
from scvi_lfm.posterior.gauge import rotate, shift_constants, translate_cells, translate_genes

GROUPS = ("low", "middle", "high")
Z = norm.ppf(0.95)


@pytest.fixture
def adata(fitted):
    return fitted.copy()


def table(adata, group, key="rank_genes_lfm"):
    """The ranking of one group as a frame by gene, in the order of the AnnData."""
    stored = adata.uns[key]
    columns = {name: stored[name][group] for name in ("names", "scores", "sd", "lfsr", "logfoldchanges")}
    return pd.DataFrame(columns).set_index("names").loc[adata.var_names]


def sides(adata, group, reference):
    """Masks of the cells on both sides."""
    labels = adata.obs["group"]
    chosen = (labels == group).to_numpy()
    return chosen, ~chosen if reference == "rest" else (labels == reference).to_numpy()


def expected_scores(fields, chosen, others):
    """Scores and standard deviations, gene by gene from dense covariances."""
    difference = fields.cells[chosen].mean(0)
    V = fields.cell_cov / chosen.sum()
    if others is not None:
        difference = difference - fields.cells[others].mean(0)
        V = V + fields.cell_cov / others.sum()
    v = fields.genes.copy()
    v[:, 0] = 1
    delta = difference[1:]
    variance = [
        v_j @ V @ v_j + delta @ T_j[1:, 1:] @ delta + np.trace(T_j[1:, 1:] @ V[1:, 1:])
        for v_j, T_j in zip(v, fields.gene_covs(fields.noise), strict=True)
    ]
    return v @ difference, np.sqrt(variance)


@pytest.mark.parametrize("reference", ["rest", "middle", None])
def test_scores_sds_and_false_sign_rates_follow_the_formulas(adata, read_fields, reference):
    lfm.tl.rank_genes(adata, "group", groups=["high", "low"], reference=reference)
    for group in ("high", "low"):
        chosen, others = sides(adata, group, reference)
        score, sd = expected_scores(read_fields(adata), chosen, None if reference is None else others)
        result = table(adata, group)
        np.testing.assert_allclose(result["scores"], score, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result["sd"], sd, rtol=1e-5)
        np.testing.assert_allclose(result["lfsr"], norm.sf(np.abs(score) / sd), rtol=1e-6)


def test_order_is_that_of_the_inner_products_with_the_shift_of_the_embedding(adata):
    lfm.tl.rank_genes(adata, "group")
    names = adata.uns["rank_genes_lfm"]["names"]
    for group in GROUPS:
        chosen, others = sides(adata, group, "rest")
        delta = adata.obsm["X_lfm"][chosen].mean(0) - adata.obsm["X_lfm"][others].mean(0)
        inner_products = adata.varm["lfm"].astype(float) @ delta
        assert names[group].tolist() == adata.var_names[np.argsort(-inner_products, kind="stable")].tolist()
        assert (np.diff(adata.uns["rank_genes_lfm"]["scores"][group]) <= 0).all()


def test_log_fold_changes_take_the_data_for_log1p_values(adata, read_fields):
    del adata.uns["lfm"]["values"]  # negative values are no logs
    lfm.tl.rank_genes(adata, "group", groups=["high"])
    fields = read_fields(adata)
    v = fields.genes.copy()
    v[:, 0] = 1
    base = fields.mu + fields.genes[:, 0]
    chosen, others = sides(adata, "high", "rest")
    top, bottom = (np.expm1(np.maximum(base + v @ fields.cells[mask].mean(0), 0)) + 1e-9 for mask in (chosen, others))
    np.testing.assert_allclose(table(adata, "high")["logfoldchanges"], np.log2(top / bottom), rtol=1e-4, atol=1e-5)


def moves(n_factors):
    """Gauge moves of each kind, all of them large."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "rotate": rotate(normal(n_factors, n_factors) + 2 * torch.eye(n_factors)),
        "translate cells": translate_cells(3 * normal(n_factors)),
        "translate genes": translate_genes(3 * normal(n_factors)),
        "shift constants": shift_constants(normal(), normal(), n_factors),
        "reflect": rotate(torch.diag(torch.tensor([-1.0, 1.0, -1.0]).double())),
    }


@pytest.mark.parametrize("kind", moves(3))
@pytest.mark.parametrize("reference", ["rest", "middle"])
def test_no_gauge_move_changes_the_ranking(adata, kind, reference):
    del adata.uns["lfm"]["values"]  # negative values are no logs
    stored = read_fit(adata, "lfm")
    moved = adata.copy()
    everything = {"n_factors": 3, "fitted": stored.fitted, "record": {"params": stored.params}}
    write_fit(moved, "lfm", moves(3)[kind].posterior(stored.posterior), **everything)
    for data in (adata, moved):
        lfm.tl.rank_genes(data, "group", groups=["high"], reference=reference)
    before, after = table(adata, "high"), table(moved, "high")
    # the moved fit went through float32
    np.testing.assert_allclose(after["scores"], before["scores"], atol=2e-5)
    np.testing.assert_allclose(after["sd"], before["sd"], rtol=1e-4)
    np.testing.assert_allclose(after["logfoldchanges"], before["logfoldchanges"], rtol=1e-3, atol=1e-4)
    untouched = [
        np.allclose(moved.obsm["X_lfm"], adata.obsm["X_lfm"]),
        np.allclose(moved.varm["lfm"], adata.varm["lfm"]),
    ]
    assert not all(untouched) or kind == "shift constants"


def test_a_mask_is_the_group_selected(adata):
    lfm.tl.rank_genes(adata, "group", groups=["high"])
    expected = table(adata, "high")
    for mask in ("is_high", adata.obs["is_high"].to_numpy(), adata.obs["is_high"], adata.obs["is_high"].tolist()):
        lfm.tl.rank_genes(adata, mask_obs=mask, key_added="by_mask")
        pd.testing.assert_frame_equal(table(adata, "selected", "by_mask"), expected)
    assert adata.uns["by_mask"]["params"]["groupby"] == "mask_obs"


def test_groups_and_params(adata):
    lfm.tl.rank_genes(adata, "group")
    assert adata.uns["rank_genes_lfm"]["names"].dtype.names == GROUPS
    params = {
        "reference": "rest",
        "rankby": "scores",
        "method": "lfm",
        "use_raw": False,
        "key": "lfm",
        "groupby": "group",
    }
    assert adata.uns["rank_genes_lfm"]["params"] == params
    lfm.tl.rank_genes(adata, "group", reference="low")
    assert adata.uns["rank_genes_lfm"]["names"].dtype.names == ("middle", "high")
    lfm.tl.rank_genes(adata, "group", groups=("high", "low"), reference=None)
    assert adata.uns["rank_genes_lfm"]["names"].dtype.names == ("high", "low")
    assert adata.uns["rank_genes_lfm"]["params"]["reference"] == "average"


def test_columns_of_numbers_and_booleans_are_labels(adata):
    adata.obs["number"] = np.arange(150) % 3
    adata.obs["logical"] = np.arange(150) % 3 == 0
    adata.obs["text"] = np.where(np.arange(150) % 3 == 0, "yes", "no")
    results = []
    for column, group, reference in (("number", 0, "rest"), ("logical", True, False), ("text", "yes", "no")):
        lfm.tl.rank_genes(adata, column, groups=[group], reference=reference)
        results.append(table(adata, str(group)))
    for result in results[1:]:
        pd.testing.assert_frame_equal(result, results[0])


def test_a_category_without_cells_is_left_out(adata):
    adata.obs["group"] = adata.obs["group"].cat.add_categories("none")
    lfm.tl.rank_genes(adata, "group")
    assert adata.uns["rank_genes_lfm"]["names"].dtype.names == GROUPS


def test_a_group_called_rest_is_a_group(adata):
    adata.obs["odd"] = np.where(adata.obs["is_high"], "rest", "others")
    lfm.tl.rank_genes(adata, "odd")
    lfm.tl.rank_genes(adata, mask_obs="is_high", key_added="by_mask")
    pd.testing.assert_frame_equal(table(adata, "rest"), table(adata, "selected", "by_mask"))


def test_one_cell_is_a_group_of_which_little_is_known(adata):
    one = np.arange(150) == 3
    lfm.tl.rank_genes(adata, mask_obs=one)
    lfm.tl.rank_genes(adata, mask_obs="is_high", key_added="many")
    assert (table(adata, "selected")["sd"] > 1.5 * table(adata, "selected", "many")["sd"]).all()
    lfm.tl.rank_genes(adata, mask_obs=one, reference=None)
    assert np.isfinite(table(adata, "selected")["scores"]).all()


def test_genes_that_were_not_fitted_are_not_ranked(fitted):
    adata = fitted[:, :40].copy()
    lfm.tl.fit(adata, 2, mask_var=np.arange(40) < 30, progress=False)
    lfm.tl.rank_genes(adata, "group")
    assert set(adata.uns["rank_genes_lfm"]["names"]["high"]) == set(adata.var_names[:30])


def test_copy(fitted):
    result = lfm.tl.rank_genes(fitted, "group", copy=True)
    assert "rank_genes_lfm" in result.uns
    assert "rank_genes_lfm" not in fitted.uns


def test_intervals_of_scores_cover_the_truth_for_quiet_and_noisy_genes():
    n, m, r = 300, 200, 4
    covered = {"quiet": [], "noisy": []}
    for seed in range(6):
        sigma = np.random.default_rng(seed).permutation(np.geomspace(0.5, 2, m))
        adata = lfm.datasets.simulate(n, m, r, sigma=sigma, rng=seed)
        lfm.tl.fit(adata, r, progress=False)
        A = adata.obsm["A"]
        cells = np.column_stack([adata.obs["a"], A])
        v = np.column_stack([np.ones(m), adata.varm["B"]])
        for mask in (*(A.T > 0), A[:, 0] > 1.5, np.arange(n) < 20):
            lfm.tl.rank_genes(adata, mask_obs=mask)
            result = table(adata, "selected")
            truth = v @ (cells[mask].mean(0) - cells[~mask].mean(0))
            inside = (result["scores"] - truth).abs().to_numpy() < Z * result["sd"].to_numpy()
            covered["quiet"].append(inside[sigma < np.quantile(sigma, 1 / 3)])
            covered["noisy"].append(inside[sigma > np.quantile(sigma, 2 / 3)])
    # measured: 0.892 and 0.898; under the fit's shared noise it would be 0.97 and 0.82
    for inside in covered.values():
        assert 0.85 <= np.mean(inside) <= 0.92


@pytest.mark.slow
def test_agrees_with_a_rank_test_on_sorted_blood_cells(pbmc_fitted):
    adata = pbmc_fitted.copy()
    lfm.tl.rank_genes(adata, "facs_celltype")
    often_detected = adata[:, adata.X.getnnz(0) >= 30].copy()
    sc.tl.rank_genes_groups(often_detected, "facs_celltype", method="wilcoxon", n_genes=25)
    ours, theirs = adata.uns["rank_genes_lfm"]["names"], often_detected.uns["rank_genes_groups"]["names"]
    shared = {group: len(set(ours[group][:25]) & set(theirs[group])) for group in ours.dtype.names}
    # measured: 20, 19, 17 and 22; 9 to 19 for the subtypes of T cells
    assert min(shared[group] for group in ("CD14+ Monocyte", "CD19+ B", "CD34+", "CD56+ NK")) >= 15, shared
    assert min(shared.values()) >= 7, shared
    assert {"CD79A", "CD74"} <= set(ours["CD19+ B"][:10])
    assert {"LYZ", "S100A9"} <= set(ours["CD14+ Monocyte"][:10])
    assert {"NKG7", "GNLY"} <= set(ours["CD56+ NK"][:10])


def test_scanpy_draws_and_reads_the_ranking(adata):
    lfm.tl.rank_genes(adata, "group")
    axes = sc.pl.rank_genes_groups(adata, key="rank_genes_lfm", n_genes=5, show=False)
    assert len(axes) == len(GROUPS)
    drawn = {text.get_text() for text in axes[-1].texts}
    assert drawn == set(adata.uns["rank_genes_lfm"]["names"]["high"][:5])
    lfm.tl.rank_genes(adata, mask_obs="is_high")
    sc.pl.rank_genes_groups(adata, key="rank_genes_lfm", n_genes=5, show=False)
