"""The closed-form ELBO against the Pyro program, which is the specification."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine

from scvi_lfm.inference.normal.elbo import kl_cell, kl_genes
from scvi_lfm.inference.normal.natural_gradient import expected_squares
from scvi_lfm.model import GuideParameters, Scales, guide, mean_field_guide, model
from scvi_lfm.model.priors import kl_of_mu

GUIDES = {"row_block": guide, "mean_field": mean_field_guide}
FAMILIES = list(GUIDES)
LATENTS = ("mu", "a", "A", "b", "B")


def scales_of(state):
    scales = state.globals.scales
    return Scales(scales.a, scales.A, scales.b, scales.B, state.globals.precision.rsqrt())


def guide_parameters(state):
    g = state.globals
    return GuideParameters(
        mu_loc=g.mu,
        mu_scale=g.mu_var.sqrt(),
        cell_loc=state.cell_mean,
        cell_tril=torch.linalg.cholesky(state.cell_cov),
        gene_loc=g.gene_mean,
        gene_tril=torch.linalg.cholesky(state.gene_covs),
    )


def log_densities(program, n_draws, *args, **kwargs):
    """Log density of each of `n_draws` traces of a program, (n_draws,), and the trace that holds them all."""

    def many(*args, **kwargs):
        with pyro.plate("draws", n_draws, dim=-3):
            return program(*args, **kwargs)

    trace = poutine.trace(many).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    sites = [trace.nodes[name] for name in (*LATENTS, "y") if name in trace.nodes]
    return sum(site["log_prob"].flatten(1).sum(1) for site in sites), trace


def entropy(state):
    covs = [state.globals.mu_var[None, None], *state.cell_cov.expand(len(state.cell_mean), -1, -1), *state.gene_covs]
    return sum(0.5 * torch.logdet(2 * math.pi * math.e * cov) for cov in covs)


def quadrature(state):
    """The nodes of Gauss-Hermite quadrature with two per whitened latent: exact up to cubes in each of them."""
    n, k = state.cell_mean.shape
    m, g = len(state.globals.gene_mean), state.globals
    nodes = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    z = torch.cartesian_prod(*[nodes] * (1 + (n + m) * k))
    z_mu, z_cells, z_genes = z.split([1, n * k, m * k], dim=1)
    cells = state.cell_mean + z_cells.view(-1, n, k) @ torch.linalg.cholesky(state.cell_cov).T
    gene_tril = torch.linalg.cholesky(state.gene_covs)
    genes = g.gene_mean + torch.einsum("jkl,djl->djk", gene_tril, z_genes.view(-1, m, k))
    return {
        "mu": (g.mu + g.mu_var.sqrt() * z_mu)[:, :, None],
        "a": cells[:, :, None, 0],
        "A": cells[:, :, None, 1:],
        "b": genes[:, None, :, 0],
        "B": genes[:, None, :, 1:],
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_programs_expected_log_joint_plus_entropy(draw_state, family, seed):
    state = draw_state(2, 2, 1, family=family, seed=seed)
    latents = quadrature(state)
    assert len(latents["mu"]) == 512
    program = poutine.condition(model, data=latents)
    log_joint, _ = log_densities(program, 512, state.y, scales_of(state))
    expected = log_joint.mean() + entropy(state)
    assert float(state.elbo) == pytest.approx(float(expected), rel=1e-10)


@pytest.fixture(scope="module", params=FAMILIES)
def sampled(request, draw_state):
    """Draws from the guide at 12 cells x 9 genes, with the log densities of guide and model."""
    state = draw_state(12, 9, 2, family=request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        log_q, trace = log_densities(GUIDES[request.param], 4000, state.y, guide_parameters(state))
    latents = {name: trace.nodes[name]["value"] for name in LATENTS}
    log_p, _ = log_densities(poutine.condition(model, data=latents), 4000, state.y, scales_of(state))
    return state, latents, log_p, log_q


def test_lies_within_four_standard_errors_of_a_monte_carlo_estimate(sampled):
    state, _, log_p, log_q = sampled
    draws = log_p - log_q
    standard_error = float(draws.std() / math.sqrt(len(draws)))
    assert standard_error < 0.01 * abs(float(state.elbo))
    assert abs(float(draws.mean() - state.elbo)) < 4 * standard_error


def test_guide_draws_have_the_moments_of_q(sampled):
    state, latents, _, log_q = sampled
    cells = torch.cat([latents["a"][..., None], latents["A"]], dim=-1)[:, :, 0]
    genes = torch.cat([latents["b"][..., None], latents["B"]], dim=-1)[:, 0]
    for draws, mean, covs in (
        (cells, state.cell_mean, state.cell_cov.expand(12, -1, -1)),
        (genes, state.globals.gene_mean, state.gene_covs),
    ):
        whitened = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covs), (draws - mean)[..., None], upper=False
        ).squeeze(-1)
        second_moment = torch.einsum("djk,djl->jkl", whitened, whitened) / len(draws)
        # five standard errors of means and second moments of 4,000 draws
        assert whitened.mean(0).abs().max() < 5 / math.sqrt(4000)
        assert (second_moment - torch.eye(3)).abs().max() < 5 * math.sqrt(2 / 4000)
    standard_error = float(log_q.std() / math.sqrt(len(log_q)))
    assert abs(float(-log_q.mean() - entropy(state))) < 4 * standard_error


def test_minibatches_of_cells_give_the_same_elbo_on_average(sampled):
    state, latents, log_p, log_q = sampled
    parts = torch.randperm(12, generator=torch.Generator().manual_seed(1)).view(3, 4)
    parameters, the_guide = guide_parameters(state), GUIDES[state.problem.family]
    latents = {name: value[:100] for name, value in latents.items()}
    model_values, guide_values = [], []
    for rows in parts:
        some = {**latents, "a": latents["a"][:, rows], "A": latents["A"][:, rows]}
        here = GuideParameters(**{**vars(parameters), "cell_loc": state.cell_mean[rows]})
        subset = {"n_cells": 12, "rows": rows}
        for program, argument, values in ((model, scales_of(state), model_values), (the_guide, here, guide_values)):
            values.append(
                log_densities(poutine.condition(program, data=some), 100, state.y[rows], argument, **subset)[0]
            )
    torch.testing.assert_close(torch.stack(model_values).mean(0), log_p[:100], rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.stack(guide_values).mean(0), log_q[:100], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_equal_dense_ones(draw_state, eta_moments, family):
    state = draw_state(23, 17, 3, family=family)
    g, scales = state.globals, state.globals.scales
    squares = expected_squares(g, state.statistics)
    torch.testing.assert_close(squares, torch.from_numpy(state.expected_squares(eta_moments).mean(0)))

    def kl(mean, cov, prior_var):
        return torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(mean, cov),
            torch.distributions.MultivariateNormal(torch.zeros_like(prior_var), torch.diag(prior_var)),
        )

    cells = kl(state.cell_mean, state.cell_cov, scales.cell_var)
    genes = kl(g.gene_mean, state.gene_covs, scales.gene_var)
    mu = kl(g.mu[None], g.mu_var[None, None], torch.tensor([100.0**2], dtype=torch.float64))
    torch.testing.assert_close(kl_cell(g, state.statistics, state.cell_cov), cells.mean())
    torch.testing.assert_close(kl_genes(g), genes.sum())
    torch.testing.assert_close(kl_of_mu(g.mu, g.mu_var), mu)
