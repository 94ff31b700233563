"""Covariances of cells that were not stored: the fixed point, found cell by cell with dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.linalg.covariances import Packed
from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.posterior import recomputed
from scvi_lfm.posterior.predictive import eta_of_grid, eta_of_pairs
from scvi_lfm.posterior.recomputed import Recomputed

N, M, R = 11, 60, 2


def record(q, family="row_block"):
    return Recomputed.of(q.mu, q.cell_mean, q.gene_mean, q.gene_cov, q.noise, q.cell_prior, family)


@pytest.fixture
def posterior(draw_count_posterior):
    def make(likelihood="negative_binomial"):
        q = draw_count_posterior(N, M, R, likelihood=likelihood)
        dispersion = q.noise.dispersion * COUNTS[likelihood].learns_dispersion
        return replace(q, mu=0.5, noise=replace(q.noise, dispersion=dispersion))

    return make


def fixed_point(q, T, family):
    """S_i of every cell, iterated until nothing changes."""
    prior_precision = np.linalg.inv(q.cell_prior.cov.numpy())
    T, found = T.numpy(), []
    for cell, log_size in zip(q.cell_mean.numpy(), q.noise.log_size.numpy(), strict=True):
        S, before = np.zeros((R + 1, R + 1)), None
        while before is None or np.abs(S - before).max() > 1e-12:
            precision = prior_precision + information(q, T, cell, log_size, S)
            if family == "mean_field":
                precision = np.diag(precision.diagonal())
            before, S = S, np.linalg.inv(precision)
        found.append(S)
    return np.array(found)


def information(q, T, cell, log_size, S):
    """`sum_j w_ij E[v_j v_j']` of one cell whose covariance is S."""
    v, u = np.column_stack([np.ones(M), q.gene_mean[:, 1:]]), np.array([1, *cell[1:]])
    vv = v[:, :, None] * v[:, None, :]
    vv[:, 1:, 1:] += T[:, 1:, 1:]
    var = np.array([v[j] @ S @ v[j] + u @ T[j] @ u + (S[1:, 1:] * T[j, 1:, 1:]).sum() for j in range(M)])
    rate = torch.from_numpy(np.exp(log_size + q.mu + q.gene_mean[:, 0].numpy() + v @ cell + var / 2))
    weight = COUNTS[q.noise.likelihood].weight_and_score(rate, rate, q.noise.dispersion)[0].numpy()
    return np.einsum("j,jkl->kl", weight, vv)


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
@pytest.mark.parametrize("likelihood", COUNTS)
def test_is_the_fixed_point(posterior, dense, likelihood, family):
    q = posterior(likelihood)
    expected = fixed_point(q, dense(q.gene_cov), family)
    found = record(q, family).packed()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        dense(Packed(found)), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max((1, 2)).min()
    )
    rows = torch.tensor([9, 2, 2])
    np.testing.assert_allclose(dense(Packed(record(q, family).at(rows).packed())), expected[rows], rtol=1e-3, atol=1e-4)


def test_is_the_fixed_point_for_cells_with_few_counts_too(posterior, dense):
    """A wide S raises the rates that make it narrow: the rounds swing about the fixed point before they reach it."""
    q = posterior()
    unit = torch.eye(R + 1, dtype=torch.float64)
    q = replace(q, mu=-3.0, gene_mean=2 * q.gene_mean, cell_prior=replace(q.cell_prior, cov=unit))
    expected = fixed_point(q, dense(q.gene_cov), "row_block")
    assert expected.diagonal(axis1=1, axis2=2).max() > 0.2
    found = record(q).diagonals()
    np.testing.assert_allclose(found, expected.diagonal(axis1=1, axis2=2), rtol=0.01)


def test_is_the_fixed_point_for_cells_without_counts_whose_prior_is_wide(posterior, dense):
    """Rounds in full would swing for ever: at the fixed point what they multiply a difference by is below -1."""
    q = posterior("poisson")
    wide = torch.diag(torch.tensor([30.0, 1.0, 1.0], dtype=torch.float64))
    q = replace(q, mu=-7.5, gene_mean=0.2 * q.gene_mean, cell_prior=replace(q.cell_prior, cov=wide))
    found = dense(Packed(record(q).packed().double())).numpy()
    narrow = q.cell_prior.cov.inverse().numpy()
    T, found_next = dense(q.gene_cov).numpy(), []
    for cell, log_size, S in zip(q.cell_mean.numpy(), q.noise.log_size.numpy(), found, strict=True):
        found_next.append(np.linalg.inv(narrow + information(q, T, cell, log_size, S)))
    assert found[:, 0, 0].max() > 3
    np.testing.assert_allclose(found, found_next, rtol=0.02, atol=0.02)


def test_each_is_made_once_where_a_cell_has_many_entries(posterior, monkeypatch):
    q, solve, solved = posterior(), Recomputed._solve, []
    q = replace(q, cell_cov=record(q))
    monkeypatch.setattr(Recomputed, "_solve", lambda cov, *rows: solved.append(len(rows[0])) or solve(cov, *rows))
    cells, genes = torch.tensor([7, 2, 4]), torch.tensor([5, 0, 9, 3])
    pairs = eta_of_pairs(q, cells.repeat_interleave(4), genes.repeat(3))
    assert solved == [3]
    grid = eta_of_grid(q, cells, genes)
    torch.testing.assert_close((grid.mean, grid.var), (pairs.mean, pairs.var), rtol=1e-5, atol=0)
    assert solved == [3, 3]


def test_does_not_depend_on_the_blocks(posterior, monkeypatch):
    q = posterior()
    at_once = record(q).packed()
    monkeypatch.setattr(recomputed, "CELLS_PER_BLOCK", 4)
    assert len(list(record(q).blocks())) == 3
    torch.testing.assert_close(record(q).packed(), at_once, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "rows",
    [slice(3, 8), torch.tensor([7, 0, 7]), torch.arange(N) % 3 == 1],
    ids=["slice", "positions", "mask"],
)
def test_answers_as_if_it_were_stored(posterior, monkeypatch, rows):
    monkeypatch.setattr(recomputed, "CELLS_PER_BLOCK", 4)
    q = posterior()
    lazy = record(q).at(rows)
    stored = Packed(record(q).packed()).at(rows)
    generator = torch.Generator().manual_seed(0)
    n = len(stored.values)
    x, noise, one = (torch.randn(shape, generator=generator) for shape in ((5, R + 1), (n, R + 1), (R + 1, R + 1)))
    for found, expected in (
        (lazy.packed(), stored.packed()),
        (lazy.diagonals(), stored.diagonals()),
        (lazy.total(), stored.total()),
        (lazy.inner(one + one.T), stored.inner(one + one.T)),
        (lazy.quadratic(noise), stored.quadratic(noise)),
        (lazy.forms(x) @ lazy.coordinates().T, stored.forms(x) @ stored.coordinates().T),
        (lazy.spread(noise[None]), stored.spread(noise[None])),
        (q.gene_cov.traces(lazy.slopes()), q.gene_cov.traces(stored.slopes())),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
