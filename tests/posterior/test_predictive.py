"""Moments of eta, by pairs, by blocks and by sampled products, in every gauge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.model.likelihoods import LIKELIHOODS
from scvi_lfm.posterior import CountPosterior, predictive, to_stored_gauge
from scvi_lfm.posterior.gauge import rotate, shift_constants, translate_cells, translate_genes
from scvi_lfm.posterior.predictive import BlockPredictor, EntryPredictor, eta_of_grid, eta_of_pairs


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["normal", "counts"])
def posterior(request, draw_posterior, draw_count_posterior):
    return (draw_posterior if request.param == "normal" else draw_count_posterior)(9, 6, 3)


def test_moments_of_eta(posterior, predictions, monkeypatch):
    q, counts = posterior, isinstance(posterior, CountPosterior)
    expected = predictions(q if counts else replace(q, noise=replace(q.noise, sigma=q.noise.predictive)))
    mean = expected["mean"] + (q.noise.log_size.numpy()[:, None] if counts else 0)
    found = BlockPredictor(q, dtype=torch.float64).moments(q.at_cells(slice(2, 7)))
    np.testing.assert_allclose(found.mean, mean[2:7], rtol=1e-10)
    np.testing.assert_allclose(found.var, expected["var"][2:7], rtol=1e-10)
    monkeypatch.setattr(predictive, "PAIRS_PER_BLOCK", 4)
    cells, genes = torch.tensor([0, 8, 3, 3, 5, 1]), torch.tensor([5, 0, 2, 3, 3, 1])
    pairs = eta_of_pairs(q, cells, genes)
    np.testing.assert_allclose(pairs.mean, mean[cells, genes], rtol=1e-10)
    np.testing.assert_allclose(pairs.var, expected["var"][cells, genes], rtol=1e-10)
    monkeypatch.setattr(predictive, "block_size", lambda n_genes: 4)
    grid = eta_of_grid(q, cells, genes[:2])
    np.testing.assert_allclose(grid.mean, mean[np.ix_(cells, genes[:2])].ravel(), rtol=1e-10)
    np.testing.assert_allclose(grid.var, expected["var"][np.ix_(cells, genes[:2])].ravel(), rtol=1e-10)


def test_moments_of_entries_in_the_order_of_cells(draw_count_posterior):
    q = draw_count_posterior(9, 6, 3)
    cells, genes = torch.tensor([0, 0, 2, 5, 5, 8]), torch.tensor([1, 5, 2, 0, 3, 1])
    wanted = eta_of_pairs(q, cells, genes)
    found = EntryPredictor(q).moments(slice(0, 9), cells, genes)
    torch.testing.assert_close(found.mean, wanted.mean)
    np.testing.assert_allclose(found.var, wanted.var, rtol=1e-5)


def test_genes_alone_keep_their_moments(posterior):
    rows = torch.tensor([4, 1])
    part = BlockPredictor(posterior.at_genes(rows), dtype=torch.float64).moments(posterior.at_genes(rows))
    whole = BlockPredictor(posterior, dtype=torch.float64).moments(posterior)
    torch.testing.assert_close(part.mean, whole.mean[:, rows])
    torch.testing.assert_close(part.var, whole.var[:, rows])


GENERAL = (
    translate_cells(normal(3, seed=6))
    .then(rotate(normal(3, 3, seed=7)))
    .then(translate_genes(normal(3, seed=8)))
    .then(shift_constants(*normal(2, seed=9), 3))
)


@pytest.mark.parametrize("move", [GENERAL.posterior, to_stored_gauge], ids=["a move", "the stored gauge"])
def test_no_gauge_changes_what_counts_say(draw_count_posterior, predictions, move):
    q = draw_count_posterior(9, 6, 3)
    moved = move(q)
    before, after = predictions(q), predictions(moved)
    for what in before:
        np.testing.assert_allclose(after[what], before[what], rtol=1e-9, atol=1e-9, err_msg=what)
    # and the package's own predictions agree
    moments = [BlockPredictor(p, dtype=torch.float64).moments(p) for p in (q, moved)]
    torch.testing.assert_close(moments[1].mean, moments[0].mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments[1].var, moments[0].var, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(moved.cell_cov.values, q.cell_cov.values)
    assert not torch.allclose(moved.gene_cov.values, q.gene_cov.values)
    assert moved.noise is q.noise


def test_the_stored_gauge_of_counts_without_factors(draw_count_posterior, predictions):
    q = draw_count_posterior(6, 5, 0)
    before, after = predictions(q), predictions(to_stored_gauge(q))
    for what in before:
        np.testing.assert_allclose(after[what], before[what], rtol=1e-10, atol=1e-10, err_msg=what)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "bernoulli"])
def test_counts_take_the_dispersion_of_their_gene(draw_count_posterior, likelihood):
    q = draw_count_posterior(6, 5, 2, likelihood=likelihood)
    cells, genes = torch.tensor([0, 3, 5]), torch.tensor([4, 0, 4])
    eta, phi = eta_of_pairs(q, cells, genes), q.noise.dispersion[[4, 0, 4]]
    found = q.law(eta, cells, genes)
    assert q.likelihood is LIKELIHOODS[likelihood]
    expected = LIKELIHOODS[likelihood].law(eta.mean, eta.var, phi)
    torch.testing.assert_close(found.seen, expected.seen)
    torch.testing.assert_close(found.parameters, expected.parameters)
    if likelihood != "bernoulli":
        torch.testing.assert_close(1 + found.parameters[0], eta.var.exp() * (1 + phi))


@pytest.mark.parametrize("df", [None, 4.0])
@pytest.mark.parametrize("varies", [False, True], ids=["shared", "by cell"])
def test_values_take_the_noise_of_their_cell_and_gene(draw_posterior, df, varies):
    q = draw_posterior(6, 5, 2)
    cell = torch.linspace(0.5, 2, 6).double() if varies else None
    q = replace(q, noise=replace(q.noise, cell=cell, df=df))
    cells, genes = torch.tensor([0, 3, 5]), torch.tensor([4, 0, 4])
    eta = eta_of_pairs(q, cells, genes)
    found = q.law(eta, cells, genes)
    noise = (q.noise.predictive[genes] * (cell[cells] if varies else 1)).square() * (1 if df is None else df / (df - 2))
    torch.testing.assert_close(found.mean(), eta.mean)
    torch.testing.assert_close(found.variance(), eta.var + noise)


@pytest.mark.parametrize("likelihood", [None, "negative_binomial", "bernoulli"])
def test_laws_of_cells_are_those_of_their_pairs(draw_posterior, draw_count_posterior, likelihood):
    q = draw_posterior(6, 5, 2) if likelihood is None else draw_count_posterior(6, 5, 2, likelihood=likelihood)
    if likelihood is None:
        q = replace(q, noise=replace(q.noise, cell=torch.linspace(0.5, 2, 6).double()))
    some = q.at_cells(slice(2, 5))
    block = some.law_in_cells(BlockPredictor(q, dtype=torch.float64).moments(some))
    rows, genes = torch.arange(2, 5).repeat_interleave(5), torch.arange(5).repeat(3)
    pairs = q.law(eta_of_pairs(q, rows, genes), rows, genes)
    torch.testing.assert_close(block.mean().flatten(), pairs.mean())
    torch.testing.assert_close(block.variance().flatten(), pairs.variance())
