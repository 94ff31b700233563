"""Steps where some entries are not data, against loops over rows in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch
from pyro import poutine

from scvi_lfm.data import CellMatrix, Observed
from scvi_lfm.inference.observed.noise import shrunk_variances
from scvi_lfm.inference.observed.ranks import leading_log_dets
from scvi_lfm.inference.observed.state import ObservedGlobals, Rows
from scvi_lfm.inference.observed.steps import (
    CellStep,
    cell_statistics,
    elbo,
    expected_squares,
    explained_by_genes,
    update_genes,
    update_mu,
)
from scvi_lfm.inference.state import Problem
from scvi_lfm.model import GuideParameters, PriorScales, Scales, guide, model
from scvi_lfm.model.priors import MU_SCALE

N, M, R = 14, 11, 2
CPU = torch.device("cpu")
LATENTS = ("mu", "a", "A", "b", "B")


def triangles(full):
    rows, columns = np.tril_indices(full.shape[-1])
    return torch.from_numpy(full[..., rows, columns])


def full(packed):
    """Symmetric matrices (rows, k, k) from their lower triangles."""
    values = np.asarray(packed)
    k = int(np.sqrt(2 * values.shape[-1]))
    rows, columns = np.tril_indices(k)
    matrices = np.zeros((*values.shape[:-1], k, k))
    matrices[..., rows, columns] = matrices[..., columns, rows] = values
    return matrices


def covariances(rng, rows, family):
    factor = rng.standard_normal((rows, R + 1, R + 1))
    cov = 0.1 * (factor @ factor.swapaxes(1, 2) + np.eye(R + 1))
    return cov * np.eye(R + 1) if family == "mean_field" else cov


class Drawn:
    """Values, a pattern, and a q at random, in float64."""

    def __init__(self, only, family, seed=0):
        rng = np.random.default_rng(seed)
        self.family = family
        self.p = rng.random((N, M)) < 0.4
        self.p[3], self.p[:, 5] = False, False  # a row and a column without a value
        self.y = rng.standard_normal((N, M)) * self.p + (0 if only else rng.poisson(0.5, (N, M)) * self.p)
        rows, columns = np.nonzero(self.p)
        stored = sp.csr_array((self.y[rows, columns], (rows, columns)), shape=(N, M))
        pattern = sp.csr_array((self.p if only else ~self.p).astype(np.float32))
        matrix = CellMatrix.of(stored, Observed(pattern, only=only))
        self.batch = matrix.batch(None, CPU, torch.float64)
        self.S, self.T = covariances(rng, N, family), covariances(rng, M, family)
        self.cell, self.gene = rng.standard_normal((N, R + 1)), rng.standard_normal((M, R + 1))
        self.w = 0.5 + rng.random(M)
        scales = PriorScales(
            a=torch.tensor(0.7, dtype=torch.float64),
            A=torch.tensor([1.0, 0.6], dtype=torch.float64),
            b=torch.tensor(0.9, dtype=torch.float64),
            B=torch.tensor([0.8, 1.1], dtype=torch.float64),
            fixed=frozenset(),
        )
        self.problem = Problem(N, M, family, "gene", n_observed=int(self.p.sum()))
        self.g = ObservedGlobals(
            mu=torch.tensor(0.3, dtype=torch.float64),
            mu_var=torch.tensor(0.01, dtype=torch.float64),
            gene_mean=torch.from_numpy(self.gene),
            gene_cov=triangles(self.T),
            gene_log_det=torch.tensor(np.linalg.slogdet(self.T)[1].sum()),
            precision=torch.from_numpy(self.w),
            scales=scales,
        )
        self.cells = Rows(
            torch.from_numpy(self.cell), triangles(self.S), torch.tensor(np.linalg.slogdet(self.S)[1].sum())
        )
        self.statistics = cell_statistics(self.batch, self.cells)

    def second(self, mean, cov):
        """E[x x'] with x = (1, factors) for each row, (rows, r+1, r+1), and E[first latent times x], (rows, r+1)."""
        x = np.column_stack([np.ones(len(mean)), mean[:, 1:]])
        square = x[:, :, None] * x[:, None]
        square[:, 1:, 1:] += cov[:, 1:, 1:]
        cross = mean[:, :1] * x
        cross[:, 1:] += cov[:, 0, 1:]
        return x, square, cross


@pytest.fixture(params=[(only, family) for only in (True, False) for family in ("row_block", "mean_field")], ids=str)
def drawn(request):
    return Drawn(*request.param)


def solved(information, target, prior_var, family):
    precision = np.diag(1 / prior_var) + information
    mean = np.linalg.solve(precision, target)
    return mean, np.diag(1 / precision.diagonal()) if family == "mean_field" else np.linalg.inv(precision)


def test_shares_of_cells_are_exact_in_float32():
    """But for one rounding: sums of thousands of shares would be off by many."""
    n, rng = 6000, np.random.default_rng(0)
    pattern = sp.csr_array((rng.random((n, 3)) < [0.3, 0.6, 1.0]).astype(np.float32))
    cells = Rows(torch.zeros(n, 1, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float32), torch.tensor(0.0))
    batch = CellMatrix.of(pattern, Observed(pattern, only=True)).batch(None, CPU)
    found = cell_statistics(batch, cells).observed()
    expected = torch.from_numpy(pattern.sum(0) / n)
    assert ((found - expected).abs() <= torch.finfo(torch.float32).eps / 2 * expected).all()


def test_cells(drawn):
    rows = CellStep.of(drawn.g, drawn.family)(drawn.batch)
    v, vv, bv = drawn.second(drawn.gene, drawn.T)
    prior = drawn.g.scales.cell_var.numpy()
    for i in range(N):
        seen = drawn.p[i]
        information = (drawn.w[seen, None, None] * vv[seen]).sum(0)
        target = (drawn.w[seen, None] * ((drawn.y[i, seen, None] - 0.3) * v[seen] - bv[seen])).sum(0)
        mean, cov = solved(information, target, prior, drawn.family)
        np.testing.assert_allclose(rows.mean[i], mean, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(full(rows.cov)[i], cov, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(full(rows.cov)[3], np.diag(prior), rtol=1e-9, atol=1e-12)  # nothing seen: the prior
    assert float(rows.log_det) == pytest.approx(np.linalg.slogdet(full(rows.cov))[1].sum(), rel=1e-9)


def test_genes(drawn):
    g, explained = update_genes(drawn.problem, drawn.g, drawn.statistics)
    u, uu, au = drawn.second(drawn.cell, drawn.S)
    prior = drawn.g.scales.gene_var.numpy()
    for j in range(M):
        seen, w = drawn.p[:, j], drawn.w[j]
        target = w * ((drawn.y[seen, j, None] - 0.3) * u[seen] - au[seen]).sum(0)
        mean, cov = solved(w * uu[seen].sum(0), target, prior, drawn.family)
        np.testing.assert_allclose(g.gene_mean[j], mean, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(full(g.gene_cov)[j], cov, rtol=1e-5, atol=1e-8)
        second = np.outer(mean, mean) + cov
        np.testing.assert_allclose(explained[j], np.sum(second * uu[seen].sum(0)) / N, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(explained, explained_by_genes(g, drawn.statistics), rtol=1e-5, atol=1e-8)


def moments(drawn):
    """Mean and variance of eta, mu's variance left out, by loops."""
    mean, var = np.empty((N, M)), np.empty((N, M))
    for i in range(N):
        for j in range(M):
            u, v = drawn.cell[i].copy(), drawn.gene[j].copy()
            mean[i, j] = 0.3 + u[0] + v[0] + u[1:] @ v[1:]
            u[0] = v[0] = 1
            inner = np.trace(drawn.S[i][1:, 1:] @ drawn.T[j][1:, 1:])
            var[i, j] = v @ drawn.S[i] @ v + u @ drawn.T[j] @ u + inner
    return mean, var


def test_expected_squares_and_mu(drawn):
    mean, var = moments(drawn)
    wanted = (drawn.p * ((drawn.y - mean) ** 2 + var + 0.01)).sum(0) / N
    np.testing.assert_allclose(expected_squares(drawn.g, drawn.statistics), wanted, rtol=1e-9, atol=1e-9)
    mu = update_mu(drawn.g, drawn.statistics, N)
    precision = MU_SCALE**-2 + (drawn.p * drawn.w).sum()
    left = (drawn.p * drawn.w * (drawn.y - mean + 0.3)).sum()
    assert float(mu.mu) == pytest.approx(left / precision, rel=1e-4)


def test_the_elbo_is_that_of_sums_over_observed_entries(drawn):
    """By the definition: expected log density of each observed entry, less divergences from multivariate Normals."""
    mean, var = moments(drawn)
    square = (drawn.y - mean) ** 2 + var + 0.01
    data = (drawn.p * 0.5 * (np.log(drawn.w / (2 * np.pi)) - drawn.w * square)).sum()

    def divergence(mean, cov, prior_var):
        total = 0.0
        for row, one in zip(mean, cov, strict=True):
            inverse = 1 / prior_var
            total += (inverse * (one.diagonal() + row**2)).sum() - len(row)
            total += np.log(prior_var).sum() - np.linalg.slogdet(one)[1]
        return total / 2

    scales = drawn.g.scales
    kl = divergence(drawn.cell, drawn.S, scales.cell_var.numpy()) + divergence(
        drawn.gene, drawn.T, scales.gene_var.numpy()
    )
    kl_mu = divergence(np.array([[0.3]]), np.array([[[0.01]]]), np.array([MU_SCALE**2]))
    found = float(elbo(drawn.problem, drawn.g, drawn.statistics, expected_squares(drawn.g, drawn.statistics)))
    assert found == pytest.approx(data - kl - kl_mu, rel=1e-6)


def test_the_elbo_lies_within_four_standard_errors_of_the_programs(drawn):
    """Draws of log p - log q of the Pyro program in which only some entries are data."""
    g, n_draws = drawn.g, 4000
    q = GuideParameters(
        mu_loc=g.mu,
        mu_scale=g.mu_var.sqrt(),
        cell_loc=drawn.cells.mean,
        cell_tril=torch.linalg.cholesky(torch.from_numpy(drawn.S)),
        gene_loc=g.gene_mean,
        gene_tril=torch.linalg.cholesky(torch.from_numpy(drawn.T)),
    )
    scales = Scales(g.scales.a, g.scales.A, g.scales.b, g.scales.B, g.precision.rsqrt())
    # what is not data has values that would be seen
    y, observed = torch.from_numpy(np.where(drawn.p, drawn.y, 1e3)), torch.from_numpy(drawn.p)

    def many(program, *args, **options):
        with pyro.plate("draws", n_draws, dim=-3):
            return program(*args, **options)

    def log_density(trace, names):
        trace.compute_log_prob()
        return sum(trace.nodes[name]["log_prob"].flatten(1).sum(1) for name in names)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        of_q = poutine.trace(many).get_trace(guide, y, q)
    latents = {name: of_q.nodes[name]["value"] for name in LATENTS}
    of_p = poutine.trace(many).get_trace(poutine.condition(model, data=latents), y, scales, observed=observed)
    draws = log_density(of_p, (*LATENTS, "y")) - log_density(of_q, LATENTS)
    found = float(elbo(drawn.problem, g, drawn.statistics, expected_squares(g, drawn.statistics)))
    standard_error = float(draws.std()) / np.sqrt(n_draws)
    assert standard_error < 0.01 * abs(found)
    assert found == pytest.approx(float(draws.mean()), abs=4 * standard_error)


def test_noise_of_a_gene_with_few_values_is_that_of_all(drawn):
    squares = expected_squares(drawn.g, drawn.statistics)
    var = shrunk_variances(drawn.problem, drawn.statistics, squares)
    shared = float(squares.sum() / drawn.statistics.observed().sum())
    assert float(var[5]) == pytest.approx(shared, rel=1e-9)  # none
    own = squares / drawn.statistics.observed().clamp_min(1e-9)
    between = (var - shared) * (own - var)
    assert (between >= -1e-9)[drawn.p.any(0)].all()


def test_log_determinants_of_leading_parts(drawn):
    found = leading_log_dets(drawn.cells.cov)
    for k in range(R + 1):
        assert float(found[k]) == pytest.approx(np.linalg.slogdet(drawn.S[:, : k + 1, : k + 1])[1].mean(), rel=1e-9)


def test_every_update_raises_the_elbo(drawn):
    """q of cells and of genes are the best given the other: no other mean or covariance has a higher bound."""
    g, _ = update_genes(drawn.problem, drawn.g, drawn.statistics)

    def value(g):
        return float(elbo(drawn.problem, g, drawn.statistics, expected_squares(g, drawn.statistics)))

    best, rng = value(g), np.random.default_rng(2)
    assert best > value(drawn.g)
    for _ in range(5):
        moved = replace(g, gene_mean=g.gene_mean + 0.05 * torch.from_numpy(rng.standard_normal((M, R + 1))))
        assert value(moved) < best
