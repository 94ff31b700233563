"""Gauge moves of counts: no rate changes, and statistics move as if they had been computed afterwards."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from scvi_lfm.inference.counts.gene_step import cell_statistics
from scvi_lfm.inference.counts.state import Cells, CountGlobals, CountStatistics
from scvi_lfm.inference.moves import best_move
from scvi_lfm.posterior.gauge import rotate, shift_constants, translate_cells, translate_genes

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ROTATION = torch.tensor([[0.8, -0.7], [1.1, 0.4]], dtype=torch.float64)
MOVES = {
    "rotation": rotate(ROTATION),
    "of the cells": translate_cells(vector(0.6, -0.4)),
    "of the genes": translate_genes(vector(-0.3, 0.5)),
    "of constants": shift_constants(vector(0.7)[0], vector(-0.2)[0], 2),
    "all in turn": translate_cells(vector(0.2, 0.9))
    .then(rotate(ROTATION))
    .then(translate_genes(vector(0.4, -0.1)))
    .then(shift_constants(vector(-0.3)[0], vector(0.8)[0], 2)),
}


def moved(state, move):
    g = state.globals.moved(move)
    return replace(state, globals=g, cells=state.cells.moved(move, state.problem.family))


def statistics_of(state):
    return cell_statistics(state.problem, state.globals, state.features, state.y, state.cells)


def log_rates(state):
    cells, features, whole = state.cells, state.features, slice(None)
    left = features.of_cells(cells.mean, cells.cov, cells.log_size + state.globals.mu)
    return features.log_rate(left, whole)


@pytest.fixture(params=[*MOVES, "the best"])
def move(request, draw_state):
    if request.param != "the best":
        return MOVES[request.param]
    state = draw_state(7, 6, 2)
    return best_move(state.globals, statistics_of(state).xx, 7, rotates=True)[0]


def test_no_rate_changes(draw_state, move):
    state = draw_state(7, 6, 2)
    after = moved(state, move)
    torch.testing.assert_close(log_rates(after), log_rates(state), **EXACT)
    assert not torch.allclose(after.cells.mean, state.cells.mean) or not torch.allclose(
        after.globals.gene_mean, state.globals.gene_mean
    )


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "bernoulli"])
def test_statistics_move_as_if_they_were_computed_afterwards(draw_state, move, likelihood):
    state = draw_state(7, 6, 2, likelihood=likelihood)
    found, expected = statistics_of(state).moved(move), statistics_of(moved(state, move))
    for field in fields(CountStatistics):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name), **EXACT)


def test_moments_of_genes_move_with_them(draw_state, move):
    g = draw_state(3, 6, 2).globals
    linear = move.gene_moments()
    torch.testing.assert_close(g.moved(move).second_moment(), linear @ g.second_moment() @ linear.T, **EXACT)


def test_moments_of_genes_are_sums_over_them(draw_state):
    state = draw_state(3, 6, 2)
    g = state.globals
    z = np.column_stack([np.ones(6), g.gene_mean])
    second = z[:, :, None] * z[:, None, :]
    second[:, 1:, 1:] += state.T
    np.testing.assert_allclose(g.second_moment(), second.sum(0), **EXACT)
    np.testing.assert_allclose(g.gene_squares(), np.diagonal(second.mean(0))[1:], **EXACT)


def test_mean_field_keeps_the_variances_alone(draw_state, dense, move):
    state = draw_state(7, 6, 2, family="mean_field")
    g, cells = state.globals.moved(move), state.cells.moved(move, "mean_field")
    full = move.cell_map.numpy() @ state.S @ move.cell_map.numpy().T
    np.testing.assert_allclose(dense(cells.cov), full * np.eye(3), **EXACT)
    full = move.gene_map.numpy() @ state.T @ move.gene_map.numpy().T
    np.testing.assert_allclose(dense(g.in_family("mean_field").gene_cov), full * np.eye(3), **EXACT)
    np.testing.assert_allclose(dense(g.in_family("row_block").gene_cov), full, **EXACT)


def test_float32_rows_stay_float32(draw_state, move):
    state = draw_state(7, 6, 2)
    g, cells = state.globals, state.cells
    low = Cells(cells.mean.float(), cells.cov.float(), cells.log_size.float()).moved(move, "row_block")
    genes = replace(g, gene_mean=g.gene_mean.float(), gene_cov=g.gene_cov.float()).moved(move)
    assert {low.mean.dtype, low.cov.dtype, genes.gene_mean.dtype, genes.gene_cov.dtype} == {torch.float32}
    assert genes.mu.dtype == torch.float64
    exact = moved(state, move)
    torch.testing.assert_close(low.mean.double(), exact.cells.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(genes.gene_cov.double(), exact.globals.gene_cov, rtol=1e-5, atol=1e-5)


def test_putting_cells_back_touches_no_others(draw_state):
    """A step on some cells leaves the others' q as it was, to the bit."""
    cells = draw_state(8, 3, 2).cells
    before = Cells(cells.mean.clone(), cells.cov.clone(), cells.log_size)
    index, others = torch.tensor([1, 5, 6]), torch.tensor([0, 2, 3, 4, 7])
    some = cells.rows(index)
    after = cells.put(index, replace(some, mean=some.mean + 1, cov=some.cov + 1))
    assert torch.equal(after.mean[others], before.mean[others])
    assert torch.equal(after.cov[others], before.cov[others])
    assert torch.equal(after.mean[index], before.mean[index] + 1)
    assert torch.equal(after.cov[index], before.cov[index] + 1)


def test_covariances_that_are_not_kept_are_one_for_all(draw_state):
    cells = draw_state(8, 3, 2).cells
    one = replace(cells, cov=cells.cov.mean(0, keepdim=True))
    assert cells.keeps_cov
    assert not one.keeps_cov
    some = one.rows(torch.tensor([1, 5]))
    assert torch.equal(some.cov, one.cov.expand(2, -1))
    assert torch.equal(some.log_size, cells.log_size[[1, 5]])
    after = one.put(torch.tensor([1, 5]), replace(some, cov=torch.stack([some.cov[0] * 2, some.cov[0] * 4])))
    torch.testing.assert_close(after.cov, 3 * one.cov, rtol=1e-12, atol=0)


def test_priors_are_those_of_the_scales(draw_state):
    g: CountGlobals = draw_state(3, 4, 2).globals
    for prior, names in ((g.cell_prior, ("a", "A")), (g.gene_prior, ("b", "B"))):
        scale = np.concatenate([np.atleast_1d(getattr(g.scales, name)) for name in names])
        np.testing.assert_array_equal(prior.mean, np.zeros(3))
        np.testing.assert_allclose(prior.cov, np.diag(scale**2), rtol=1e-15)
