from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit, write_fit
from scvi_lfm.posterior.gauge import translate_cells, translate_genes
from scvi_lfm.posterior.recomputed import Recomputed
from scvi_lfm.tl import _sample_posterior

N_DRAWS = 4000


@pytest.fixture(scope="module")
def adata(fitted):
    """A few cells and genes, moved to a gauge in which a and A go together, and b and B."""
    adata = fitted[:12, :9].copy()
    stored = read_fit(adata, "lfm")
    move = translate_genes(torch.tensor([0.2, -0.4, 0.0]).double()).then(
        translate_cells(torch.full((3,), 4.0).double())
    )
    moved = move.posterior(stored.posterior)
    write_fit(adata, "lfm", moved, n_factors=3, fitted=stored.fitted, record={"params": stored.params})
    return adata


@pytest.fixture(scope="module")
def draws(adata):
    return lfm.tl.sample_posterior(adata, N_DRAWS)


def test_shapes(draws):
    assert {name: array.shape for name, array in draws.items()} == {
        "mu": (),
        "a": (N_DRAWS, 12),
        "A": (N_DRAWS, 12, 3),
        "b": (N_DRAWS, 9),
        "B": (N_DRAWS, 9, 3),
    }
    assert {array.dtype for array in draws.values()} == {np.dtype(np.float32)}


def test_moments_and_cross_covariances_are_those_of_the_posterior(adata, draws, read_fields):
    fields = read_fields(adata)
    cells = np.concatenate([draws["a"][..., None], draws["A"]], axis=2).astype(float)
    genes = np.concatenate([draws["b"][..., None], draws["B"]], axis=2).astype(float)
    cell_covs = np.broadcast_to(fields.cell_cov, (12, 4, 4))
    for drawn, mean, covs in (
        (cells, fields.cells, cell_covs),
        (genes, fields.genes, fields.gene_covs(fields.noise)),
    ):
        scale = np.sqrt(np.diagonal(covs, axis1=1, axis2=2))
        standardised = (drawn - mean) / scale
        moments = np.einsum("sik,sil->ikl", standardised, standardised) / N_DRAWS
        correlation = covs / (scale[:, :, None] * scale[:, None, :])
        # five standard errors
        assert np.abs(standardised.mean(0)).max() < 5 / np.sqrt(N_DRAWS)
        assert np.abs(moments - correlation).max() < 5 * np.sqrt(2 / N_DRAWS)
        # draws without the cross-covariance would be seen
        assert np.abs(correlation[:, 0, 1:]).max() > 10 * np.sqrt(2 / N_DRAWS)


def test_rows_are_independent_of_each_other(draws):
    for first, second in ((draws["A"][:, 0, 0], draws["A"][:, 1, 0]), (draws["b"][:, 0], draws["b"][:, 1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(N_DRAWS)


def test_eta_of_the_draws_has_the_moments_of_predict(adata, draws):
    eta = draws["mu"] + draws["a"][:, :, None] + draws["b"][:, None] + np.einsum("sik,sjk->sij", draws["A"], draws["B"])
    expected = lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names=list(adata.var_names))
    sd = expected["sd"].to_numpy().reshape(12, 9)
    assert np.abs((eta.mean(0) - expected["expected"].to_numpy().reshape(12, 9)) / sd).max() < 5 / np.sqrt(N_DRAWS)
    np.testing.assert_allclose(eta.std(0), sd, rtol=0.1)


def test_same_seed_same_draws(adata):
    first, second, other = (lfm.tl.sample_posterior(adata, 3, rng=seed) for seed in (1, 1, 2))
    for name in ("a", "A", "b", "B"):
        np.testing.assert_array_equal(first[name], second[name])
        assert not np.array_equal(first[name], other[name])
    generator = np.random.default_rng(1)
    drawn = [lfm.tl.sample_posterior(adata, 3, rng=generator)["A"] for _ in range(2)]
    assert not np.array_equal(*drawn)


def test_genes_that_were_not_fitted_are_missing(fitted):
    adata = fitted[:, :20].copy()
    lfm.tl.fit(adata, 2, mask_var=np.arange(20) != 5, progress=False)
    draws = lfm.tl.sample_posterior(adata, 2)
    for name in ("b", "B"):
        assert np.isnan(draws[name][:, 5]).all()
        assert np.isfinite(np.delete(draws[name], 5, axis=1)).all()


@pytest.mark.parametrize("options", [{}, {"noise": "cell_gene"}, {"likelihood": "negative_binomial"}])
def test_draws_do_not_depend_on_how_many_are_made_together(options, fit_of, monkeypatch):
    adata = fit_of(**options)
    together = lfm.tl.sample_posterior(adata, 5)
    first = lfm.tl.sample_posterior(adata, 2)
    monkeypatch.setattr(_sample_posterior, "NOISE_BYTES", 1)
    one_by_one = lfm.tl.sample_posterior(adata, 5)
    for key in ("a", "A", "b", "B"):
        np.testing.assert_array_equal(together[key], one_by_one[key])
        np.testing.assert_array_equal(together[key][:2], first[key])


def test_covariances_that_are_not_stored_are_computed_once(fit_of, monkeypatch):
    adata = fit_of("negative_binomial")
    del adata.obsm["lfm_cov"]
    made = []
    monkeypatch.setattr(Recomputed, "blocks", lambda self, blocks=Recomputed.blocks: made.append(0) or blocks(self))
    lfm.tl.sample_posterior(adata, 4)
    assert len(made) == 1
