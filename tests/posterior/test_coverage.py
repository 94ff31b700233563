"""Intervals of eta hold the truth as often as they say, for quiet and for noisy genes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit

N, M, R = 600, 400, 4


def coverage(adata, true_eta, eta_moments, dense_gene_covs, *, fit_noise=False):
    """Share of entries of each gene whose true eta lies in the central 90 % of its posterior."""
    q = read_fit(adata, "lfm").posterior
    covs = dense_gene_covs(q, q.noise.sigma if fit_noise else q.noise.predictive).numpy()
    mean, var = eta_moments(q.mu, q.cell_mean.numpy(), q.cell_cov.matrix.numpy(), q.gene_mean.numpy(), covs)
    return (np.abs(true_eta(adata) - mean) < norm.ppf(0.95) * np.sqrt(var)).mean(0)


@pytest.fixture(scope="module", params=[("shared", R), ("gene", R), ("gene", 15)])
def fits(request):
    """Two data sets whose noise varies fourfold between genes, fitted with as many factors as there are, or more."""
    noise, n_factors = request.param
    made = []
    for seed in range(2):
        sigma = np.random.default_rng(seed).permutation(np.geomspace(0.5, 2, M))
        adata = lfm.datasets.simulate(N, M, R, sigma=sigma, rng=seed)
        lfm.tl.fit(adata, n_factors, noise=noise, progress=False)
        made.append(adata)
    return noise, n_factors, made


def test_ninety_percent_intervals_of_eta_cover_ninety_percent(fits, true_eta, eta_moments, dense_gene_covs):
    covered = [coverage(adata, true_eta, eta_moments, dense_gene_covs) for adata in fits[2]]
    for share in (0.25, 0.5, 0.75, 1):
        quartile = [
            genes[(rank := adata.var["sigma"].rank(pct=True)).le(share) & rank.gt(share - 0.25)].mean()
            for genes, adata in zip(covered, fits[2], strict=True)
        ]
        # factors that are not needed and not quite off make intervals a little too wide
        assert 0.85 < np.mean(quartile) < (0.92 if fits[1] == R else 0.94)


def test_the_noise_of_the_fit_alone_would_not_do(fits, true_eta, eta_moments, dense_gene_covs):
    """Why genes have a noise of their own for predicting: one sigma is too cautious and too bold."""
    noise, n_factors, made = fits
    if n_factors != R:
        pytest.skip("a question of the noise alone")
    quiet, noisy = [], []
    for adata in made:
        covered = coverage(adata, true_eta, eta_moments, dense_gene_covs, fit_noise=True)
        rank = adata.var["sigma"].rank(pct=True)
        quiet.append(covered[rank <= 0.25].mean())
        noisy.append(covered[rank > 0.75].mean())
    within = np.mean(noisy) > 0.85 and np.mean(quiet) < 0.92
    assert within == (noise == "gene")
