"""Expected rates, entry by entry from dense covariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_lfm.posterior import rates as module
from scvi_lfm.posterior.rates import MAX_LOG_RATE, GeneFeatures, cell_features, rates


def terms(q, S, T):
    """Expected eta without the size factor, and the three parts of its variance, by loops."""
    n, m = len(q.cell_mean), len(q.gene_mean)
    found = {name: np.zeros((n, m)) for name in ("mean", "from_cell", "from_gene", "product")}
    for i in range(n):
        for j in range(m):
            cell, gene = q.cell_mean[i].numpy(), q.gene_mean[j].numpy()
            u, v = np.array([1, *cell[1:]]), np.array([1, *gene[1:]])
            found["mean"][i, j] = q.mu + gene[0] + cell @ v
            found["from_cell"][i, j] = v @ S[i].numpy() @ v
            found["from_gene"][i, j] = u @ T[j].numpy() @ u
            found["product"][i, j] = np.trace(S[i].numpy()[1:, 1:] @ T[j].numpy()[1:, 1:])
    return found


def log_rates(q, cell_cov, gene_cov):
    """As inference computes them, from packed covariances."""
    features = GeneFeatures.of(q.gene_mean, gene_cov)
    genes = slice(None)
    half = features.half_variance(cell_features(q.cell_mean, cell_cov), genes)
    return rates(features.linear(q.cell_mean, genes), half, q.noise.log_size + q.mu).log().numpy()


@pytest.mark.parametrize("r", [3, 1, 0])
def test_log_rates(draw_count_posterior, dense, r):
    q = draw_count_posterior(8, 6, r)
    found = log_rates(q, q.cell_cov.values, q.gene_cov.values)
    by_loops = terms(q, dense(q.cell_cov), dense(q.gene_cov))
    mean = q.noise.log_size.numpy()[:, None] + by_loops["mean"]
    var = by_loops["from_cell"] + by_loops["from_gene"] + by_loops["product"]
    np.testing.assert_allclose(found, mean + var / 2, rtol=1e-11, atol=1e-11)


def test_each_covariance_counts(draw_count_posterior, dense):
    """What S adds is half of v' S v and of the product; what T adds, half of u' T u and of the product."""
    q = draw_count_posterior(8, 6, 3)
    S, T = q.cell_cov.values, q.gene_cov.values
    by_loops = terms(q, dense(q.cell_cov), dense(q.gene_cov))
    from_cell, from_gene, product = by_loops["from_cell"], by_loops["from_gene"], by_loops["product"]
    assert min(np.abs(part).min() for part in (from_cell, from_gene, product)) > 1e-2
    both = log_rates(q, S, T)
    np.testing.assert_allclose(both - log_rates(q, 0 * S, T), (from_cell + product) / 2, rtol=1e-9)
    np.testing.assert_allclose(both - log_rates(q, S, 0 * T), (from_gene + product) / 2, rtol=1e-9)
    np.testing.assert_allclose(log_rates(q, S, 0 * T) - log_rates(q, 0 * S, 0 * T), from_cell / 2, rtol=1e-9)


def test_a_rate_is_the_mean_of_the_exponential(draw_count_posterior, dense):
    """Exact where the genes are known: eta is Normal then."""
    q = draw_count_posterior(4, 3, 2)
    found = np.exp(log_rates(q, q.cell_cov.values, 0 * q.gene_cov.values))
    normal = np.random.default_rng(0).standard_normal((400_000, 3))
    for i, S in enumerate(dense(q.cell_cov).numpy()):
        cells = q.cell_mean[i].numpy() + normal @ np.linalg.cholesky(S).T
        v = np.column_stack([np.ones(3), q.gene_mean[:, 1:]])
        eta = float(q.noise.log_size[i]) + q.mu + q.gene_mean[:, 0].numpy() + cells @ v.T
        error = np.exp(eta).std(0) / math.sqrt(len(cells))
        assert (np.abs(np.exp(eta).mean(0) - found[i]) < 5 * error).all()


def test_second_moments_of_genes(draw_count_posterior, dense):
    q = draw_count_posterior(2, 6, 3)
    features = GeneFeatures.of(q.gene_mean, q.gene_cov.values)
    p, (rows, columns) = features.packed_size, np.tril_indices(4)
    T = dense(q.gene_cov).numpy()
    for j, gene in enumerate(q.gene_mean.numpy()):
        # z = (b, 1, B): of the 1 there is no doubt
        z, cov = np.array([gene[0], 1, *gene[1:]]), np.zeros((5, 5))
        kept = [0, 2, 3, 4]
        cov[np.ix_(kept, kept)] = T[j]
        second = np.outer(z, z) + cov
        np.testing.assert_allclose(features.moments[j, :p], T[j][rows, columns])
        np.testing.assert_allclose(features.moments[j, p : 2 * p], second[1:, 1:][rows, columns])
        np.testing.assert_allclose(features.moments[j, 2 * p :], second[0, 1:])


def test_blocks_are_all_genes_in_turn(draw_count_posterior, monkeypatch):
    q = draw_count_posterior(5, 700, 2)
    features = GeneFeatures.of(q.gene_mean, q.gene_cov.values)
    whole = log_rates(q, q.cell_cov.values, q.gene_cov.values)
    assert list(features.blocks(5)) == [slice(0, 350), slice(350, 700)]
    monkeypatch.setattr(module, "ENTRIES_PER_BLOCK", 1500)
    blocks = list(features.blocks(5))
    assert [(part.start, part.stop) for part in blocks] == [(0, 175), (175, 350), (350, 525), (525, 700)]
    left, offset = cell_features(q.cell_mean, q.cell_cov.values), q.noise.log_size + q.mu
    parts = [rates(features.linear(q.cell_mean, b), features.half_variance(left, b), offset) for b in blocks]
    np.testing.assert_allclose(torch.cat(parts, dim=1).log(), whole, rtol=1e-12)


def test_rates_stay_finite_in_float32():
    found = rates(torch.tensor([[1e4, -1e4]]), torch.tensor([[1e4, 0.0]]), torch.zeros(1))
    assert found.tolist() == [[pytest.approx(math.exp(MAX_LOG_RATE), rel=1e-6), 0.0]]
