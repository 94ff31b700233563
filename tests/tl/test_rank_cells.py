from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

import scvi_lfm as lfm

GENES = ["gene_3", "gene_40", "gene_77"]


@pytest.fixture
def adata(fitted):
    return fitted.copy()


def test_scores_sds_and_false_sign_rates_follow_the_formulas(adata, read_fields):
    lfm.tl.rank_cells(adata, GENES)
    fields = read_fields(adata)
    rows = adata.var_names.get_indexer(GENES)
    A, S = fields.cells[:, 1:], fields.cell_cov[1:, 1:]
    direction = fields.genes[rows, 1:].mean(0)
    T = fields.gene_covs(fields.noise)[rows, 1:, 1:].sum(0) / len(rows) ** 2
    score = A @ direction
    sd = np.sqrt(direction @ S @ direction + np.einsum("ik,kl,il->i", A, T, A) + np.trace(S @ T))
    np.testing.assert_allclose(adata.obs["rank_cells_lfm"], score, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(adata.obs["rank_cells_lfm_sd"], sd, rtol=1e-5)
    np.testing.assert_allclose(adata.obs["rank_cells_lfm_lfsr"], norm.sf(np.abs(score) / sd), rtol=1e-5)


def test_mean_score_is_zero_and_one_name_does(adata):
    lfm.tl.rank_cells(adata, "gene_3")
    lfm.tl.rank_cells(adata, ["gene_3"], key_added="list")
    np.testing.assert_array_equal(adata.obs["rank_cells_lfm"], adata.obs["list"])
    assert abs(adata.obs["rank_cells_lfm"].mean()) < 1e-5


def test_a_gene_named_twice_counts_once(adata):
    lfm.tl.rank_cells(adata, GENES)
    lfm.tl.rank_cells(adata, [*GENES, GENES[0]], key_added="again")
    for suffix in ("", "_sd", "_lfsr"):
        np.testing.assert_array_equal(adata.obs[f"again{suffix}"], adata.obs[f"rank_cells_lfm{suffix}"])


def test_is_the_search_of_rank_genes_the_other_way_round(adata):
    """The genes that set some cells apart find these cells again."""
    lfm.tl.rank_genes(adata, mask_obs="is_high")
    lfm.tl.rank_cells(adata, adata.uns["rank_genes_lfm"]["names"]["selected"][:5])
    best = adata.obs["rank_cells_lfm"].nlargest(int(adata.obs["is_high"].sum())).index
    assert adata.obs.loc[best, "is_high"].mean() > 0.85


def test_intervals_cover_the_truth():
    inside = []
    for seed in range(4):
        adata = lfm.datasets.simulate(300, 200, 4, sigma=np.geomspace(0.5, 2, 200), rng=seed)
        lfm.tl.fit(adata, 4, progress=False)
        truth = (adata.obsm["A"] - adata.obsm["A"].mean(0)) @ (adata.varm["B"] - adata.varm["B"].mean(0)).T
        for j in range(0, 200, 10):
            lfm.tl.rank_cells(adata, [f"gene_{j}", f"gene_{j + 1}"])
            error = adata.obs["rank_cells_lfm"] - truth[:, [j, j + 1]].mean(1)
            inside.append((error.abs() < norm.ppf(0.95) * adata.obs["rank_cells_lfm_sd"]).mean())
    assert 0.85 <= np.mean(inside) <= 0.92


def test_finds_the_type_of_known_markers(pbmc_fitted):
    adata = pbmc_fitted.copy()
    for genes, wanted in ((["CD79A", "CD79B"], "CD19+ B"), (["LYZ", "S100A9"], "CD14+ Monocyte"), ("GNLY", "CD56+ NK")):
        lfm.tl.rank_cells(adata, genes)
        best = adata.obs["rank_cells_lfm"].nlargest(60).index
        assert (adata.obs.loc[best, "facs_celltype"] == wanted).mean() > 0.9


def test_copy(fitted):
    result = lfm.tl.rank_cells(fitted, "gene_3", copy=True)
    assert "rank_cells_lfm" in result.obs
    assert "rank_cells_lfm" not in fitted.obs
