"""The recorded ELBO against quadrature on tiny data, and its sample of entries."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.counts import objective
from scvi_lfm.inference.counts.objective import (
    EntrySample,
    draws_and_log_dets,
    elbo_per_entry,
    kl_mu,
    kl_rows,
    log_densities,
)
from scvi_lfm.inference.counts.state import Cells
from scvi_lfm.model.likelihoods import COUNTS

COPIES = 4000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data_term(problem, g, cells, sample, generator):
    """The estimate of E log p from draws with this generator."""
    draws = [draws_and_log_dets(cov, generator)[0] for cov in (cells.cov, g.gene_cov)]
    return float((log_densities(problem, g, cells, sample, *draws) @ sample.weight).mean())


def divergence_of_rows(mean, cov, prior):
    return float(kl_rows(mean, cov, draws_and_log_dets(cov, generator())[1], prior))


def whole_sample(state, copies=1):
    """Every entry once for each copy of the data set; copies share no cell and no gene."""
    n, m = state.y.shape
    cell, gene = torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij")
    place = torch.arange(copies)[:, None]
    total = copies * n * m
    return EntrySample(
        cell=(place * n + cell.flatten()).flatten(),
        gene=(place * m + gene.flatten()).flatten(),
        y=state.y.flatten().repeat(copies),
        weight=torch.full((total,), 1 / total, dtype=torch.float64),
        n_entries=total,
    )


def copied(state, copies):
    """The data set many times over, as so many independent draws."""
    g, cells = state.globals, state.cells
    many = Cells(cells.mean.repeat(copies, 1), cells.cov.repeat(copies, 1), cells.log_size.repeat(copies))
    genes = replace(
        g,
        gene_mean=g.gene_mean.repeat(copies, 1),
        gene_cov=g.gene_cov.repeat(copies, 1),
        dispersion=g.dispersion.repeat(copies),
    )
    return genes, many


def log_probability(likelihood, y, rate, phi):
    """By scipy, entry by entry."""
    if likelihood == "poisson":
        return scipy.stats.poisson.logpmf(y, rate)
    if likelihood == "negative_binomial":
        return scipy.stats.nbinom.logpmf(y, 1 / phi, 1 / (1 + phi * rate))
    return np.log(-np.expm1(-rate)) if y else -rate


def by_quadrature(state, nodes=24):
    """Mean over entries of E log p: over (a, A) and (b, B) of one factor, a + b in one."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    g, cells, total = state.globals, state.cells, 0.0
    n, m = state.y.shape
    # standardised A, B and the rest of a + b
    zA, zB, zr = np.meshgrid(x, x, x, indexing="ij")
    weight = w[:, None, None] * w[None, :, None] * w[None, None, :]
    for i in range(n):
        for j in range(m):
            (a, A), (b, B), S, T = cells.mean[i].numpy(), g.gene_mean[j].numpy(), state.S[i], state.T[j]
            eA, eB = math.sqrt(S[1, 1]) * zA, math.sqrt(T[1, 1]) * zB
            rest = S[0, 0] - S[0, 1] ** 2 / S[1, 1] + T[0, 0] - T[0, 1] ** 2 / T[1, 1]
            margins = a + S[0, 1] / S[1, 1] * eA + b + T[0, 1] / T[1, 1] * eB + math.sqrt(rest) * zr
            eta = float(g.mu + cells.log_size[i]) + margins + (A + eA) * (B + eB)
            y, phi = float(state.y[i, j]), float(g.dispersion[j])
            total += (weight * log_probability(state.likelihood, y, np.exp(eta), phi)).sum()
    return total / (n * m)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_the_expected_log_density_is_that_of_quadrature(draw_state, likelihood):
    state = draw_state(3, 4, 1, likelihood=likelihood)
    exact = by_quadrature(state)
    assert by_quadrature(state, 16) == pytest.approx(exact, abs=1e-5)
    g, cells = copied(state, COPIES)
    sample = whole_sample(state, COPIES)
    found = [data_term(state.problem, g, cells, sample, generator(seed)) for seed in range(5)]
    error = np.std(found, ddof=1) / math.sqrt(5)
    assert error < 0.005
    assert np.mean(found) == pytest.approx(exact, abs=5 * error)
    # what the variances are worth is far more than that
    certain = replace(cells, cov=1e-12 * cells.cov), replace(g, gene_cov=1e-12 * g.gene_cov)
    at_means = data_term(state.problem, certain[1], certain[0], sample, generator())
    assert abs(at_means - exact) > 20 * error


@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("family", ["row_block", "mean_field"])
def test_the_elbo_is_its_parts(draw_state, general_prior, likelihood, family):
    state = draw_state(4, 5, 2, likelihood=likelihood, family=family)
    g, cells, sample = state.globals, state.cells, whole_sample(state)
    data = data_term(state.problem, g, cells, sample, generator(3))
    for priors in ((g.cell_prior, g.gene_prior), (general_prior(3, seed=2), general_prior(3, seed=3))):
        divergence = 0.5 * float(g.mu / 100) ** 2
        for means, covs, prior in ((cells.mean, state.S, priors[0]), (g.gene_mean, state.T, priors[1])):
            q = MultivariateNormal(means, torch.from_numpy(covs))
            divergence += float(kl_divergence(q, MultivariateNormal(prior.mean, prior.cov)).sum())
        found = elbo_per_entry(state.problem, g, cells, priors, sample, 3)
        assert found == pytest.approx(data - divergence / 20, rel=1e-9)
    assert float(kl_mu(g)) == pytest.approx(0.5 * (float(g.mu) / 100) ** 2, rel=1e-12)


def test_cells_of_a_block_stand_for_all(draw_state):
    """Of n cells the block holds some: their divergence counts by its share, that of genes over all entries."""
    state = draw_state(4, 5, 2)
    priors, sample = (state.globals.cell_prior, state.globals.gene_prior), whole_sample(state)
    values = {
        n: elbo_per_entry(replace(state.problem, n_cells=n), state.globals, state.cells, priors, sample, 0)
        for n in (4, 8, 10**9)
    }
    T = MultivariateNormal(state.globals.gene_mean, torch.from_numpy(state.T))
    genes = float(kl_divergence(T, MultivariateNormal(priors[1].mean, priors[1].cov)).sum()) + float(
        kl_mu(state.globals)
    )
    assert values[8] - values[4] == pytest.approx(genes / 40, rel=1e-9)
    assert values[10**9] - values[4] == pytest.approx(genes / 20, rel=1e-6)


def test_same_seed_same_value_and_another_seed_another(draw_state):
    state = draw_state(6, 5, 2)
    priors, sample = (state.globals.cell_prior, state.globals.gene_prior), whole_sample(state)
    first, again, other = (
        elbo_per_entry(state.problem, state.globals, state.cells, priors, sample, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first == pytest.approx(other, abs=0.5)


def test_draws_come_in_pairs_of_opposites(draw_state):
    """What is linear in the draws has no noise at all."""
    state = draw_state(6, 5, 0, likelihood="poisson")
    sample = whole_sample(state)
    # without product and dispersion, y eta is linear in eta, and at no depth nothing else is left
    cells = replace(state.cells, log_size=torch.full((6,), -60.0, dtype=torch.float64))
    found = {data_term(state.problem, state.globals, cells, sample, generator(s)) for s in range(3)}
    eta = -60 + state.globals.mu + cells.mean + state.globals.gene_mean.T
    expected = (state.y * eta - torch.lgamma(state.y + 1)).mean()
    for value in found:
        assert value == pytest.approx(float(expected), rel=1e-6)


@pytest.fixture(params=[np.asarray, sp.csr_array], ids=["dense", "sparse"])
def counts(request):
    return request.param(np.random.default_rng(0).poisson(0.3, (40, 30)).astype(np.float32))


def draw(values, seed=0):
    return EntrySample.draw(CellMatrix.of(values), torch.device("cpu"), np.random.default_rng(seed))


def test_the_sample_takes_every_nonzero_where_there_are_few(counts):
    sample, dense = draw(counts), np.asarray(counts if isinstance(counts, np.ndarray) else counts.toarray())
    assert float(sample.weight.sum()) == pytest.approx(1, rel=1e-9)
    np.testing.assert_array_equal(dense[sample.cell, sample.gene], sample.y)
    assert sample.y.dtype == torch.float32
    stored = sample.y > 0
    assert int(stored.sum()) == int((dense > 0).sum())
    # exact in what zeros say nothing about
    for function in (np.asarray, np.square, np.sign):
        estimate = float(sample.weight.numpy() @ function(sample.y.numpy().astype(float)))
        assert estimate == pytest.approx(function(dense.astype(float)).mean(), rel=1e-9)
    assert float(sample.weight[~stored].sum()) == pytest.approx((dense == 0).mean(), rel=1e-9)


def test_zeros_are_drawn_evenly(counts):
    dense = np.asarray(counts if isinstance(counts, np.ndarray) else counts.toarray()).ravel()
    drawn = np.zeros(1200)
    for seed in range(40):
        sample = draw(counts, seed)
        zeros = sample.y == 0
        np.add.at(drawn, (sample.cell * 30 + sample.gene)[zeros].numpy(), 1)
    assert not drawn[dense > 0].any()
    rate = drawn.sum() / (dense == 0).sum()
    assert np.abs(drawn[dense == 0] - rate).max() < 5 * math.sqrt(rate)


def test_the_sample_takes_half_its_entries_from_many_nonzeros(counts, monkeypatch):
    monkeypatch.setattr(objective, "ENTRIES", 100)
    sample = draw(counts)
    stored = sample.y > 0
    assert int(stored.sum()) == 50
    assert len(set((sample.cell * 30 + sample.gene)[stored].tolist())) == 50
    assert float(sample.weight[stored].sum()) == pytest.approx(float((counts > 0).sum()) / 1200, rel=1e-9)
    many = [draw(counts, seed) for seed in range(200)]
    estimates = [float(one.weight @ one.y.double()) for one in many]
    assert np.mean(estimates) == pytest.approx(float(counts.mean()), abs=5 * np.std(estimates) / math.sqrt(200))


def test_explicit_zeros_are_zeros():
    values = sp.csr_array(np.eye(6, dtype=np.float32))
    values.data[2] = 0
    sample = draw(values)
    assert int((sample.y > 0).sum()) == 5
    assert float(sample.weight.sum()) == pytest.approx(1, rel=1e-9)
    assert float(sample.weight @ sample.y.double()) == pytest.approx(5 / 36, rel=1e-9)


def test_same_seed_same_entries(counts):
    first, again, other = (draw(counts, seed) for seed in (1, 1, 2))
    assert torch.equal(first.cell, again.cell)
    assert torch.equal(first.gene, again.gene)
    assert not torch.equal(first.gene[-50:], other.gene[-50:])


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_sample_of_nothing_but_zeros_or_without_any(value):
    sample = draw(np.full((5, 4), value))
    assert float(sample.weight.sum()) == pytest.approx(1, rel=1e-9)
    assert (sample.y == value).all()


def test_divergence_of_rows(draw_state, general_prior):
    state, prior = draw_state(6, 5, 2), general_prior(3)
    normals = zip(state.cells.mean, state.S, strict=True)
    expected = sum(
        float(kl_divergence(MultivariateNormal(mean, torch.from_numpy(S)), MultivariateNormal(prior.mean, prior.cov)))
        for mean, S in normals
    )
    assert divergence_of_rows(state.cells.mean, state.cells.cov, prior) == pytest.approx(expected, rel=1e-10)
    itself = torch.from_numpy(prior.cov.numpy()[np.tril_indices(3)])[None]
    assert divergence_of_rows(prior.mean[None], itself, prior) == pytest.approx(0, abs=1e-12)


def test_divergence_of_many_rows_in_float32(draw_state, general_prior):
    """Several blocks, and sums in float64."""
    state, prior = draw_state(50, 5, 2), general_prior(3)
    mean, cov = state.cells.mean, state.cells.cov
    once = divergence_of_rows(mean, cov, prior)
    many = divergence_of_rows(mean.float().repeat(100, 1), cov.float().repeat(100, 1), prior)
    assert many == pytest.approx(100 * once, rel=1e-6)


def test_draws_have_the_covariances_of_their_rows():
    cov = torch.tensor([[2.0, -0.6, 1.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    draws, log_dets = draws_and_log_dets(cov.repeat(20000, 1), generator())
    for row, expected in enumerate(([[2.0, -0.6], [-0.6, 1.0]], [[0.5, 0.0], [0.0, 0.0]])):
        found = np.cov(draws[:, row::2].reshape(-1, 2).numpy().T)
        np.testing.assert_allclose(found, expected, atol=0.03)
    # the second row's second coordinate is known
    np.testing.assert_allclose(log_dets[:2], [math.log(2.0 - 0.36), math.log(0.5)], rtol=1e-12)


@pytest.mark.parametrize("n_drawn", [100, 200, 4000])
def test_the_standard_error_is_the_spread_over_samples(monkeypatch, n_drawn):
    """Of a mean over all entries, of which some 230 are not zero: from some of each kind, or from all of these."""
    monkeypatch.setattr(objective, "ENTRIES", n_drawn)
    rng = np.random.default_rng(0)
    y = rng.poisson(0.5, size=(30, 20)).astype(np.float32)
    values = torch.from_numpy(rng.normal(size=y.shape) + 2 * (y > 0))
    samples = [EntrySample.draw(CellMatrix.of(y), torch.device("cpu"), np.random.default_rng(s)) for s in range(600)]
    of_entries = [values[sample.cell, sample.gene] for sample in samples]
    means = [float(sample.weight @ found) for sample, found in zip(samples, of_entries, strict=True)]
    errors = [sample.standard_error(found) for sample, found in zip(samples, of_entries, strict=True)]
    # the spread of 600 is known to 3 %, and the divisor is the number drawn, not one less
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.12)
    assert np.mean(means) == pytest.approx(float(values.mean()), abs=4 * np.std(means) / 600**0.5)


def test_nothing_is_left_to_chance_where_all_entries_were_drawn():
    y = np.ones((4, 5), dtype=np.float32)
    sample = EntrySample.draw(CellMatrix.of(y), torch.device("cpu"), np.random.default_rng(0))
    assert sample.standard_error(torch.arange(20, dtype=torch.float64)) == 0
