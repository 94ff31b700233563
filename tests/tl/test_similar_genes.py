from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


def test_correlation_and_covariance_follow_the_formulas(fitted, read_fields):
    result = lfm.tl.similar_genes(fitted, "gene_5", n_top=80)
    fields = read_fields(fitted)
    population, B = fields.cell_prior_cov[1:, 1:], fields.genes[:, 1:]
    T = fields.gene_covs(fields.noise)[:, 1:, 1:]
    variance = np.einsum("jk,kl,jl->j", B, population, B) + np.einsum("jkl,lk->j", T, population)
    covariance = B @ population @ B[5]
    correlation = covariance / np.sqrt(variance * variance[5])
    order = [j for j in np.argsort(-correlation) if j != 5]
    assert result["names"].tolist() == fitted.var_names[order].tolist()
    np.testing.assert_allclose(result["correlation"], correlation[order], rtol=1e-6)
    np.testing.assert_allclose(result["covariance"], covariance[order], rtol=1e-6)


def test_covariance_is_that_of_expected_expression_across_cells(fitted, true_eta):
    eta = true_eta(fitted)
    truth = np.cov((eta - eta.mean(1, keepdims=True)).T)[5]
    result = lfm.tl.similar_genes(fitted, "gene_5", n_top=79).set_index("names")["covariance"]
    assert np.corrcoef(result, truth[fitted.var_names.get_indexer(result.index)])[0, 1] > 0.95


def test_length_and_columns(fitted):
    result = lfm.tl.similar_genes(fitted, "gene_5")
    assert result.shape == (20, 3)
    assert result.columns.tolist() == ["names", "correlation", "covariance"]
    assert "gene_5" not in result["names"].to_numpy()
    assert (result["correlation"].diff().dropna() <= 0).all()
    assert len(lfm.tl.similar_genes(fitted, "gene_5", n_top=1000)) == 79


@pytest.mark.parametrize(
    ("gene", "expected"), [("CD79A", {"CD79B", "MS4A1"}), ("LYZ", {"S100A9", "CST3"}), ("GNLY", {"NKG7"})]
)
def test_finds_partners_of_known_markers(pbmc_fitted, gene, expected):
    assert expected <= set(lfm.tl.similar_genes(pbmc_fitted, gene, n_top=10)["names"])
