"""Count fits without some of their factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.counts.engine import CountEngine
from scvi_lfm.inference.counts.gene_step import cell_statistics
from scvi_lfm.inference.counts.objective import EntrySample, elbo_of_entries
from scvi_lfm.inference.state import factor_columns


@pytest.fixture
def state(draw_state):
    return draw_state(12, 9, 3)


@pytest.fixture
def on(state):
    on = torch.ones(state.globals.n_factors, dtype=torch.bool)
    on[0] = False
    return on


def test_dropping_a_factor_drops_its_rows_and_columns(state, on, dense):
    statistics = cell_statistics(state.problem, state.globals, state.features, state.y, state.cells)
    kept, kept_x = np.flatnonzero([True, *on]), np.flatnonzero([True, True, *on])
    factors = torch.from_numpy(np.flatnonzero(on))
    less = statistics.at_columns(factor_columns(2, factors))
    np.testing.assert_array_equal(dense(less.weighted), dense(statistics.weighted)[:, kept_x[:, None], kept_x])
    np.testing.assert_array_equal(less.response, statistics.response[:, kept_x])
    np.testing.assert_array_equal(less.xx, statistics.xx[kept_x][:, kept_x])
    np.testing.assert_array_equal(dense(state.cells.at_factors(factors, 0).cov), state.S[:, kept[:, None], kept])
    np.testing.assert_array_equal(dense(state.globals.at_factors(factors).gene_cov), state.T[:, kept[:, None], kept])


def test_a_factor_at_its_prior_without_loadings_costs_nothing(state):
    """With the same random numbers, dropping it leaves the estimate as it was."""
    g, r = state.globals, state.globals.n_factors
    on = torch.arange(r - 1)
    k = torch.tensor([False] * r + [True])
    rows, columns = torch.tril_indices(r + 1, r + 1)
    last = k[rows] | k[columns]
    tiny = 1e-12

    def without(mean, cov, var):
        cov = cov.clone()
        cov[:, last] = 0
        cov[:, -1] = var
        return torch.where(k, 0.0, mean), cov

    gene_mean, gene_cov = without(g.gene_mean, g.gene_cov, tiny)
    cell_mean, cell_cov = without(state.cells.mean, state.cells.cov, float(g.scales.A[-1]) ** 2)
    B = torch.cat([g.scales.B[:-1], g.scales.B.new_tensor([tiny**0.5])])
    g = replace(g, gene_mean=gene_mean, gene_cov=gene_cov, scales=replace(g.scales, B=B))
    cells = replace(state.cells, mean=cell_mean, cov=cell_cov)
    sample = EntrySample.draw(CellMatrix.of(state.y.numpy()), torch.device("cpu"), np.random.default_rng(0))

    def value(g, cells):
        return elbo_of_entries(state.problem, g, cells, (g.cell_prior, g.gene_prior), sample, 0, width=r + 1)[0]

    assert value(g.at_factors(on), cells.at_factors(on, 0)) == pytest.approx(value(g, cells), abs=1e-5)


def test_the_curve_peaks_near_the_truth_and_ends_at_the_bound_of_the_fit(count_options):
    adata = lfm.datasets.simulate(300, 150, 3, likelihood="negative_binomial", factor_scales=[0.6] * 3)
    engine = CountEngine(CellMatrix.of(adata.X), count_options(adata.X, n_factors=8, batch_size=150))
    state, _ = engine.start()
    for number in range(1, 5):
        state, values = engine.epoch(state, number, NoBar())
    curve = engine.ranks(state)
    assert len(curve.elbo) == 9
    # in another rotation than that of the fit, which costs far less than a factor must gain: a nat for each latent
    assert curve.elbo[-1] == pytest.approx(values[0], abs=(300 + 150) / (300 * 150))
    # four epochs are few
    assert curve.best in (3, 4)
    assert 2 < curve.effective[3] < 3


class NoBar:
    def update(self):
        pass
