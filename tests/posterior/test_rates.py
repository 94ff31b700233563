"""Expected rates, entry by entry from dense covariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_lfm.posterior import rates as module
from scvi_lfm.posterior.rates import MAX_LOG_RATE, GeneFeatures, evenly, n_looked_at, rates


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
    return features.rates(features.of_cells(q.cell_mean, cell_cov, q.noise.log_size + q.mu), slice(None)).log().numpy()


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
        np.testing.assert_allclose(features.equations[j, :p], second[1:, 1:][rows, columns])
        np.testing.assert_allclose(features.equations[j, p : p + 4], second[0, 1:])
        assert not features.equations[j, p + 4 :].any()


def test_blocks_are_all_genes_in_turn(draw_count_posterior, monkeypatch):
    q = draw_count_posterior(5, 700, 2)
    features = GeneFeatures.of(q.gene_mean, q.gene_cov.values)
    whole = log_rates(q, q.cell_cov.values, q.gene_cov.values)
    # each begins at a multiple of what a cache line holds
    assert list(features.blocks(5)) == [slice(0, 352), slice(352, 700)]
    monkeypatch.setattr(module, "ENTRIES_PER_BLOCK", 1500)
    blocks = list(features.blocks(5))
    assert [(part.start, part.stop) for part in blocks] == [(0, 176), (176, 352), (352, 528), (528, 700)]
    left = features.of_cells(q.cell_mean, q.cell_cov.values, q.noise.log_size + q.mu)
    parts = [features.rates(left, b) for b in blocks]
    np.testing.assert_allclose(torch.cat(parts, dim=1).log(), whole, rtol=1e-12)


def test_rates_stay_finite_in_float32():
    found = rates(torch.tensor([[2e4, -1e4]]))
    assert found.tolist() == [[pytest.approx(math.exp(MAX_LOG_RATE), rel=1e-6), 0.0]]


@pytest.fixture
def many():
    """1,200 cells and 2,400 genes of eight types and twelve factors, whose covariances are those of their counts."""
    r, k, rng = 12, 13, np.random.default_rng(0)
    types = rng.standard_normal((8, k)) * np.r_[0.1, np.full(r, 0.8)]
    cell_mean = types[rng.integers(8, size=1200)] + 0.1 * rng.standard_normal((1200, k))
    gene_mean = np.column_stack([rng.normal(-1.5, 1.2, 2400), 0.3 * rng.standard_normal((2400, r))])
    u, v = cell_mean.copy(), gene_mean.copy()
    u[:, 0] = v[:, 0] = 1
    weight = np.exp(gene_mean[:, 0] + cell_mean @ v.T).clip(max=20)
    rows, columns = np.tril_indices(k)

    def packed_covariances(weight, x):
        precision = np.einsum("ij,jk,jl->ikl", weight, x, x, optimize=True) + np.eye(k)
        return torch.from_numpy(np.linalg.inv(precision)[:, rows, columns])

    cell_cov, gene_cov = packed_covariances(weight, v), packed_covariances(weight.T, u)
    return *map(torch.from_numpy, (cell_mean, gene_mean)), cell_cov, gene_cov


def test_near_variances_are_nearly_right(many):
    """Errors of half variances are small beside them, and of no sign; all else stays as it is."""
    cell_mean, gene_mean, cell_cov, gene_cov = many
    exact, genes, offset = GeneFeatures.of(gene_mean, gene_cov), slice(None), torch.zeros(len(cell_mean))
    some = evenly(len(cell_mean), n_looked_at(exact.n_latents), cell_mean.device)
    near = GeneFeatures.of(gene_mean, gene_cov, (cell_mean[some], cell_cov[some]))
    left, of_near = (features.of_cells(cell_mean, cell_cov, offset) for features in (exact, near))
    assert of_near.shape[1] - 2 - exact.n_latents == 26 < 0.15 * (left.shape[1] - 2 - exact.n_latents)
    torch.testing.assert_close(near.eta(of_near, genes), exact.eta(left, genes))
    torch.testing.assert_close(near.linear(of_near, genes), exact.linear(left, genes))
    assert torch.equal(near.equations, exact.equations)
    half = exact.half_variance(left, genes)
    error = near.half_variance(of_near, genes) - half
    share = float(error.square().mean().sqrt() / half.square().mean().sqrt())
    assert share < 0.02
    assert abs(float(error.mean() / half.mean())) < 0.002


def test_few_genes_or_latents_stay_exact(draw_count_posterior):
    for n, m, r in ((20, 300, 12), (20, 4000, 3)):
        q = draw_count_posterior(n, m, r)
        exact = GeneFeatures.of(q.gene_mean, q.gene_cov.values)
        near = GeneFeatures.of(q.gene_mean, q.gene_cov.values, (q.cell_mean, q.cell_cov.values))
        assert near.basis is None
        assert torch.equal(near.rate, exact.rate)


@pytest.mark.parametrize(("n", "count"), [(10, 3), (3, 10), (1000, 78), (0, 5)])
def test_positions_are_spread_evenly(n, count):
    found = evenly(n, count, torch.device("cpu"))
    assert len(found) == min(n, count)
    assert sorted(set(found.tolist())) == found.tolist()
    if n > count:
        gaps = np.diff([*found.tolist(), n])
        assert gaps.max() - gaps.min() <= 1
