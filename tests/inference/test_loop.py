"""The engine as a whole: what it does with one batch and with many, and what it recovers."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from as_blocks import as_blocks
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference import fit_natural_gradient
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.finish import drop_unused_factors
from scvi_lfm.inference.normal.state import NormalGlobals
from scvi_lfm.inference.normal.sweep import local_step, sweep
from scvi_lfm.inference.state import Problem
from scvi_lfm.model import PriorScales

# a tolerance that no fit reaches: run to max_epochs, or until rounding stops the gains
NEVER = 1e-300


def matrix_of(adata):
    return CellMatrix.of(adata.X.astype(np.float64))


def eta_of(posterior):
    return (
        posterior.mu
        + posterior.cell_mean[:, :1]
        + posterior.gene_mean[:, 0]
        + posterior.cell_mean[:, 1:] @ posterior.gene_mean[:, 1:].T
    ).numpy()


@pytest.mark.parametrize(
    ("family", "noise"), [("row_block", "shared"), ("row_block", "gene"), ("mean_field", "shared")]
)
def test_one_batch_is_coordinate_ascent(whole_batch, first_step, fit_options, family, noise):
    adata = lfm.datasets.simulate(50, 40, 2, sigma=0.5)
    options = fit_options(n_factors=2, family=family, noise=noise, max_epochs=4, tol=NEVER, batch_size=50)
    result = fit_natural_gradient(matrix_of(adata), options)

    batch = whole_batch(adata.X)
    problem = Problem(50, 40, family, noise)
    step = first_step(problem, batch, 2)
    for epoch in range(4):
        step = sweep(problem, step.globals, as_blocks(batch))
        value = float(elbo(step.globals, step.statistics, step.cell_cov, 50)) / (50 * 40)
        assert result.elbo[epoch] == (epoch + 1, pytest.approx(value, rel=1e-12))
    g = drop_unused_factors(problem, step).globals
    cells = local_step(problem, g)(batch).mean
    eta = g.mu + cells[:, :1] + g.gene_mean[:, 0] + cells[:, 1:] @ g.gene_mean[:, 1:].T
    # the last pass reads the cells in float32, from genes as they will be stored
    np.testing.assert_allclose(eta_of(result.posterior), eta, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.posterior.noise.sigma, g.precision.rsqrt(), rtol=1e-6)


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
@pytest.mark.parametrize("batch_size", [90, 30])
def test_the_last_elbo_is_that_of_the_stored_posterior(fit_options, eta_moments, family, batch_size):
    """Through the last pass and the stored gauge, with its general prior; only mu's KL knows the gauge."""
    adata = lfm.datasets.simulate(90, 60, 2, sigma=0.5)
    options = fit_options(n_factors=2, family=family, noise="gene", batch_size=batch_size, max_epochs=3, tol=NEVER)
    q = fit_natural_gradient(matrix_of(adata), options)
    value, q = q.elbo[-1][1] * 90 * 60, q.posterior
    S, T = q.cell_cov.matrix, q.gene_cov.under(q.noise.sigma)
    gene_covs = torch.einsum("ik,jk,lk->jil", T.basis, T.diagonal, T.basis)
    mean, var = eta_moments(q.mu, q.cell_mean.numpy(), S.numpy(), q.gene_mean.numpy(), gene_covs.numpy())
    w = q.noise.sigma.numpy() ** -2
    mu_var = 1 / (1e-4 + 90 * w.sum())
    squares = (adata.X - mean) ** 2 + var + mu_var
    expected = 0.5 * (np.log(w / (2 * np.pi)) - w * squares).sum()
    for means, covs, prior in (
        (q.cell_mean, S.expand(90, -1, -1), q.cell_prior),
        (q.gene_mean, gene_covs, q.gene_prior),
    ):
        expected -= float(
            torch.distributions.kl_divergence(
                torch.distributions.MultivariateNormal(means, covs),
                torch.distributions.MultivariateNormal(prior.mean, prior.cov),
            ).sum()
        )
    expected -= 0.5 * (mu_var / 1e4 + q.mu**2 / 1e4 - 1 - np.log(mu_var / 1e4))
    assert value == pytest.approx(expected, rel=1e-7)


def test_truth_is_recovered_to_the_information_limit(fit_options, true_eta):
    n, m, r, sigma = 400, 300, 4, 0.8
    free = n + m - 1 + r * (n + m - 2 - r)
    ratios = []
    for seed in range(2):
        adata = lfm.datasets.simulate(n, m, r, sigma=sigma, rng=seed)
        q = fit_natural_gradient(matrix_of(adata), fit_options(n_factors=r)).posterior
        ratios.append(((eta_of(q) - true_eta(adata)) ** 2).mean() / (sigma**2 * free / (n * m)))
        interaction = adata.obsm["A"] @ adata.varm["B"].T
        interaction += interaction.mean() - interaction.mean(0) - interaction.mean(1)[:, None]
        found = (q.cell_mean[:, 1:] @ q.gene_mean[:, 1:].T).numpy()
        assert np.corrcoef(interaction.ravel(), found.ravel())[0, 1] > 0.98
        # four standard errors of a standard deviation
        assert float(q.noise.sigma[0]) == pytest.approx(sigma, rel=4 / np.sqrt(2 * (n * m - free)))
    # unbiased estimation would give 1, the mean of two draws of chi-squared over its degrees of freedom: four standard
    # errors; shrinkage gains a little
    assert 0.85 < np.mean(ratios) < 1 + 4 / np.sqrt(free)


def test_noise_of_each_gene_is_recovered(fit_options):
    sigma = np.geomspace(0.4, 1.6, 200)
    adata = lfm.datasets.simulate(500, 200, 3, sigma=sigma)
    shared = fit_natural_gradient(matrix_of(adata), fit_options()).posterior
    by_gene = fit_natural_gradient(matrix_of(adata), fit_options(noise="gene")).posterior
    # relative standard errors of 1 / sqrt(2 * 500) = 0.03, on average 0.025
    assert np.abs(by_gene.noise.sigma.numpy() / sigma - 1).mean() < 0.035
    # with one sigma for all, a quiet gene's expected squares hold some of the noise of the others
    assert np.abs(shared.noise.predictive.numpy() / sigma - 1).mean() < 0.05
    assert torch.equal(by_gene.noise.sigma, by_gene.noise.predictive)
    assert float(shared.noise.sigma[0] ** 2) == pytest.approx(float(np.mean(sigma**2)), rel=0.02)


@pytest.mark.parametrize("batch_size", [400, 100])
def test_factors_that_the_data_do_not_need_are_off(fit_options, batch_size):
    adata = lfm.datasets.simulate(400, 300, 4)
    result = fit_natural_gradient(matrix_of(adata), fit_options(n_factors=9, tol=0.01, batch_size=batch_size))
    share = np.array(result.variance_ratio)
    assert (share > 0.01).sum() == 4
    # off, or on their way when the fit stops; the noise of minibatches keeps a trace of them
    assert share[4:].sum() < (0.01 if batch_size == 100 else 1e-4)


@pytest.mark.parametrize(
    ("shape", "sigma", "data", "seed"),
    [((600, 400), 4.0, 1, 0), ((2000, 200), 5.0, 0, 1), ((2000, 200), 5.0, 1, 1)],
)
def test_weak_factors_are_found(whole_batch, fit_options, shape, sigma, data, seed):
    """A fit from random factors ends no lower than one that starts at the truth."""
    (n, m), r = shape, 5
    adata = lfm.datasets.simulate(n, m, r, sigma=sigma, rng=data)
    result = fit_natural_gradient(CellMatrix.of(adata.X), fit_options(n_factors=r, seed=seed, dtype=torch.float32))

    one, eye = torch.ones((), dtype=torch.float64), torch.eye(r + 1, dtype=torch.float64)
    genes = torch.from_numpy(np.column_stack([adata.var["b"], adata.varm["B"]]))
    g = NormalGlobals(
        mu=one * adata.uns["mu"],
        mu_var=one,
        gene_mean=genes,
        gene_basis=eye,
        gene_eig=eye.diagonal(),
        gene_diagonal=torch.full((m, r + 1), 1e-3, dtype=torch.float64),
        precision=torch.full((m,), sigma**-2, dtype=torch.float64),
        scales=PriorScales(one, one.expand(r), one, genes[:, 1:].square().mean(0).sqrt()),
    )
    batch = whole_batch(adata.X)
    for _ in range(30):
        step = sweep(Problem(n, m, "row_block", "shared"), g, as_blocks(batch))
        g = step.globals
    from_truth = float(elbo(g, step.statistics, step.cell_cov, n)) / (n * m)
    assert result.elbo[-1][1] > from_truth - 5e-3 * (from_truth - result.elbo_rank0)


@pytest.mark.parametrize("tol", [0.01, pytest.param(0.001, marks=pytest.mark.slow)])
def test_converged_minibatches_are_as_close_as_they_say(fit_options, tol):
    """Noise of the estimates must not pass for convergence."""
    matrix = CellMatrix.of(lfm.datasets.simulate(2000, 200, 5, sigma=5.0, rng=1).X)
    options = fit_options(n_factors=5, dtype=torch.float32, max_epochs=60, tol=NEVER)
    full = fit_natural_gradient(matrix, options)
    stochastic = fit_natural_gradient(matrix, replace(options, batch_size=200, max_epochs=20, tol=tol))
    best = max(full.elbo[-1][1], stochastic.elbo[-1][1])
    gap = (best - stochastic.elbo[-1][1]) / (best - full.elbo_rank0)
    # the estimate comes from noisy steps
    assert not stochastic.converged or gap < 3 * tol


@pytest.mark.slow
def test_minibatches_come_close_to_coordinate_ascent(fit_options):
    adata = lfm.datasets.simulate(6000, 300, 5, sigma=2.0)
    matrix = CellMatrix.of(adata.X)
    options = fit_options(n_factors=5, dtype=torch.float32, max_epochs=100, tol=NEVER)
    full = fit_natural_gradient(matrix, options)
    stochastic = fit_natural_gradient(matrix, replace(options, batch_size=500, max_epochs=20, tol=0.01))
    best = max(value for _, value in full.elbo)
    gap = (best - stochastic.elbo[-1][1]) / (best - full.elbo_rank0)
    assert stochastic.converged
    assert gap < 0.01
    # the estimates along the way lie near the exact value at the end
    assert abs(stochastic.elbo[-2][1] - stochastic.elbo[-1][1]) < 0.03 * (best - full.elbo_rank0)


def test_minibatch_trace_has_marks_every_few_steps_and_ends_with_the_exact_value(fit_options):
    adata = lfm.datasets.simulate(300, 40, 2)
    result = fit_natural_gradient(matrix_of(adata), fit_options(n_factors=2, batch_size=30, max_epochs=2, tol=NEVER))
    epochs = np.array([epoch for epoch, _ in result.elbo])
    # nine steps after the block of the start, then ten; two a mark, the last takes the rest
    whole = [2 / 9, 4 / 9, 6 / 9, 1, 1.2, 1.4, 1.6, 1.8, 2]
    np.testing.assert_allclose(epochs[:-1], whole[: len(epochs) - 1])
    assert epochs[-1] == epochs[-2]


def test_minibatches_may_stop_inside_an_epoch_after_which_one_step_takes_all_cells(fit_options):
    adata = lfm.datasets.simulate(3000, 40, 2)
    matrix = matrix_of(adata)
    early = fit_natural_gradient(matrix, fit_options(n_factors=2, batch_size=100, tol=0.05))
    assert early.elbo[-1][0] < 1
    assert early.converged
    best = fit_natural_gradient(matrix, fit_options(n_factors=2, tol=1e-4))
    gain = best.elbo[-1][1] - early.elbo_rank0
    assert best.elbo[-1][1] - early.elbo[-1][1] < 0.05 * gain


def test_stops_at_the_tolerance(fit_options):
    matrix = matrix_of(lfm.datasets.simulate(200, 100, 3))
    runs = {tol: fit_natural_gradient(matrix, fit_options(n_factors=3, tol=tol, seed=1)) for tol in (0.1, 1e-3, NEVER)}
    assert runs[0.1].converged
    assert runs[1e-3].converged
    lengths = [len(run.elbo) for run in runs.values()]
    assert lengths[0] <= lengths[1] < lengths[2]
    best = runs[NEVER].elbo[-1][1]
    gain = best - runs[NEVER].elbo_rank0
    for tol in (0.1, 1e-3):
        assert best - runs[tol].elbo[-1][1] < tol * gain
    assert not fit_natural_gradient(matrix, fit_options(n_factors=3, max_epochs=2, tol=NEVER)).converged


@pytest.mark.parametrize("noise", ["shared", "gene"])
def test_float32_data_give_the_float64_answer(fit_options, noise):
    matrix = matrix_of(lfm.datasets.simulate(300, 200, 3, mu=2.0))
    fits = [
        fit_natural_gradient(matrix, fit_options(noise=noise, dtype=dtype, max_epochs=5, tol=NEVER))
        for dtype in (torch.float32, torch.float64)
    ]
    sd = float(fits[1].posterior.noise.sigma.mean()) * np.sqrt(4 / 200)
    assert np.abs(eta_of(fits[0].posterior) - eta_of(fits[1].posterior)).max() < 0.001 * sd
    assert fits[0].elbo[-1][1] == pytest.approx(fits[1].elbo[-1][1], abs=1e-5)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("batch_size", [400, 100])
def test_a_large_offset_leaves_the_noise_what_it_is(form, batch_size):
    """y^2 is a million times sigma^2 here: sums of it must not swallow the difference."""
    adata = lfm.datasets.simulate(400, 150, 3, mu=1000.0)
    centred = adata.copy()
    centred.X = adata.X - np.float32(1000)
    adata.X = form(adata.X)
    for data in (adata, centred):
        lfm.tl.fit(data, 3, batch_size=batch_size, progress=False)
    assert adata.uns["lfm"]["sigma"] == pytest.approx(1, rel=0.02)
    noise = adata.var["lfm_sigma"] / centred.var["lfm_sigma"]
    assert np.abs(noise - 1).max() < 0.05
    values = [data.uns["lfm"]["elbo"]["value"][-1] for data in (adata, centred)]
    assert values[0] == pytest.approx(values[1], abs=0.01)


@pytest.mark.parametrize("sigma", [1e-2, 1e-4])
def test_data_almost_free_of_noise_keep_what_there_is(fit_options, sigma):
    adata = lfm.datasets.simulate(300, 100, 2, sigma=sigma)
    options = fit_options(n_factors=2, dtype=torch.float32, tol=0.01)
    q = fit_natural_gradient(CellMatrix.of(adata.X), options).posterior
    assert float(q.noise.sigma[0]) == pytest.approx(sigma, rel=0.03)
    # each from 300 cells: five standard errors
    np.testing.assert_allclose(q.noise.predictive, sigma, rtol=5 / np.sqrt(2 * 300))


@pytest.mark.parametrize("batch_size", [300, 75])
def test_same_seed_same_bits_and_another_seed_others(fit_options, batch_size):
    matrix = CellMatrix.of(lfm.datasets.simulate(300, 120, 3).X)
    options = fit_options(dtype=torch.float32, batch_size=batch_size, max_epochs=3, tol=NEVER)
    first, again, other = (fit_natural_gradient(matrix, replace(options, seed=seed)) for seed in (4, 4, 5))
    small = ("cell_cov.matrix", "gene_cov.basis", "gene_cov.eig", "noise.sigma", "noise.predictive")
    for name in ("cell_mean", "gene_mean", *small):
        assert torch.equal(attrgetter(name)(first.posterior), attrgetter(name)(again.posterior))
    assert first.elbo == again.elbo
    assert first.elbo != other.elbo
    assert not torch.equal(first.posterior.cell_mean, other.posterior.cell_mean)
    np.testing.assert_allclose(eta_of(other.posterior), eta_of(first.posterior), atol=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1000, 250])
def test_cuda_gives_the_cpus_answer(fit_options, batch_size):
    """1,000 cells: eta agrees to a hundredth of its posterior standard deviation, the ELBO per entry to 1e-4."""
    adata = lfm.datasets.simulate(1000, 500, 4)
    fits = [
        fit_natural_gradient(
            CellMatrix.of(adata.X),
            fit_options(
                n_factors=4,
                dtype=torch.float32,
                device=torch.device(device),
                batch_size=batch_size,
                max_epochs=6,
                tol=NEVER,
            ),
        )
        for device in ("cpu", "cuda")
    ]
    on_host = [
        replace(f.posterior, cell_mean=f.posterior.cell_mean.cpu(), gene_mean=f.posterior.gene_mean.cpu()) for f in fits
    ]
    sd = np.sqrt(5 / 500)
    assert np.abs(eta_of(on_host[0]) - eta_of(on_host[1])).max() < 0.01 * sd
    assert fits[0].elbo[-1][1] == pytest.approx(fits[1].elbo[-1][1], abs=1e-4)
