"""Each closed-form update against exact posteriors, brute force, and the ELBO that it is to maximise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.data import Scaled
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.natural_gradient import (
    GENE_NOISE_FLOOR,
    cell_covariance,
    cell_means,
    cell_precision,
    cell_statistics,
    expected_squares,
    update_genes,
    update_mu,
    update_noise,
)
from scvi_lfm.inference.normal.state import NormalStatistics
from scvi_lfm.inference.normal.sweep import local_step
from scvi_lfm.model import Gaussian

FAMILIES = ["row_block", "mean_field"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def known_genes(state):
    """The state with mu, b and B known."""
    g = state.globals
    zero = torch.zeros_like
    return replace(g, mu_var=zero(g.mu_var), gene_diagonal=zero(g.gene_diagonal))


def exact_posterior(design, residual, noise_var, prior_mean, prior_cov):
    """Posterior of x for `residual = design x + noise`, by conditioning in the space of the data."""
    gain = prior_cov @ design.T @ np.linalg.inv(design @ prior_cov @ design.T + np.diag(noise_var))
    return prior_mean + gain @ (residual - design @ prior_mean), prior_cov - gain @ design @ prior_cov


def in_family(cov, family):
    return np.diag(1 / np.linalg.inv(cov).diagonal()) if family == "mean_field" else cov


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m", "r"), [(4, 30, 3), (20, 3, 2), (5, 6, 0)])
def test_cells_given_known_genes_have_the_exact_posterior(draw_state, family, n, m, r):
    state = draw_state(n, m, r, family=family)
    g = known_genes(state)
    block = local_step(state.problem, g)(state.batch)
    genes = g.gene_mean.numpy()
    design = np.column_stack([np.ones(m), genes[:, 1:]])
    prior_cov = np.diag(g.scales.cell_var.numpy())
    for i, y in enumerate(state.y.numpy()):
        residual = y - float(g.mu) - genes[:, 0]
        mean, cov = exact_posterior(design, residual, 1 / g.precision.numpy(), np.zeros(r + 1), prior_cov)
        np.testing.assert_allclose(block.mean[i], mean, **EXACT)
    np.testing.assert_allclose(block.cov, in_family(cov, family), **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m", "r"), [(30, 4, 3), (3, 20, 2), (5, 6, 0)])
def test_genes_given_known_cells_have_the_exact_posterior(draw_state, family, n, m, r):
    state = replace(draw_state(n, m, r, family=family), cell_cov=torch.zeros(r + 1, r + 1, dtype=torch.float64))
    g = update_genes(state.globals, state.statistics, n, family)
    cells = state.cell_mean.numpy()
    design = np.column_stack([np.ones(n), cells[:, 1:]])
    prior_cov = np.diag(g.scales.gene_var.numpy())
    covs = replace(state, globals=g).gene_covs
    for j, y in enumerate(state.y.numpy().T):
        residual = y - float(g.mu) - cells[:, 0]
        noise_var = np.full(n, 1 / float(g.precision[j]))
        mean, cov = exact_posterior(design, residual, noise_var, np.zeros(r + 1), prior_cov)
        np.testing.assert_allclose(g.gene_mean[j], mean, **EXACT)
        np.testing.assert_allclose(covs[j], in_family(cov, family), **EXACT)


def test_a_general_prior_of_the_cells_is_honoured(draw_state):
    state = draw_state(5, 7, 2)
    g = known_genes(state)
    prior = Gaussian(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), state.cell_cov)
    moment = g.weighted_moment()
    precision = cell_precision(moment, prior)
    design = np.column_stack([np.ones(7), g.gene_mean[:, 1:].numpy()])
    projected = state.batch.times_genes(Scaled(g.precision[:, None] * torch.from_numpy(design)))
    means = cell_means(g.mu, projected, moment, precision, prior, state.batch.known)
    for i, y in enumerate(state.y.numpy()):
        residual = y - float(g.mu) - g.gene_mean[:, 0].numpy()
        mean, cov = exact_posterior(design, residual, 1 / g.precision.numpy(), prior.mean.numpy(), prior.cov.numpy())
        np.testing.assert_allclose(means[i], mean, **EXACT)
    np.testing.assert_allclose(cell_covariance(precision, "row_block"), cov, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_that_see_nothing_keep_their_prior(draw_state, family):
    state = draw_state(4, 6, 2, family=family)
    g = replace(state.globals, precision=torch.zeros(6, dtype=torch.float64))
    block = local_step(state.problem, g)(state.batch)
    np.testing.assert_array_equal(block.mean, np.zeros((4, 3)))
    np.testing.assert_allclose(block.cov, np.diag(g.scales.cell_var), rtol=1e-14)


def test_a_general_prior_is_kept_where_there_are_no_genes(draw_state):
    state = draw_state(4, 6, 2)
    none = torch.empty(0, 3, dtype=torch.float64)
    g = replace(state.globals, gene_mean=none, gene_diagonal=none, precision=none[:, 0])
    prior = Gaussian(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), state.cell_cov)
    moment = g.weighted_moment()
    precision = cell_precision(moment, prior)
    nothing = torch.zeros(4, 3, dtype=torch.float64)
    means = cell_means(g.mu, nothing, moment, precision, prior, state.batch.known)
    np.testing.assert_allclose(means, prior.mean.expand(4, -1), **EXACT)
    np.testing.assert_allclose(cell_covariance(precision, "row_block"), prior.cov, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nothing", ["no cells", "no weight"])
def test_genes_and_mu_that_see_nothing_keep_their_prior(draw_state, family, nothing):
    state = draw_state(8, 5, 2, family=family)
    g, statistics, n_cells = state.globals, state.statistics, 8
    if nothing == "no cells":
        zero = torch.zeros_like
        statistics, n_cells = NormalStatistics(zero(statistics.xx), zero(statistics.yx), zero(statistics.yy)), 0
    else:
        g = replace(g, precision=torch.zeros(5, dtype=torch.float64))
    g = update_genes(g, statistics, n_cells, family)
    covs = replace(state, globals=g).gene_covs
    np.testing.assert_array_equal(g.gene_mean, np.zeros((5, 3)))
    np.testing.assert_allclose(covs, np.broadcast_to(np.diag(g.scales.gene_var), (5, 3, 3)), rtol=1e-12, atol=1e-15)
    g = update_mu(g, statistics, n_cells)
    assert float(g.mu) == 0
    assert float(g.mu_var) == pytest.approx(100**2, rel=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_uncertain_genes_and_cells_enter_by_their_expected_products(draw_state, family):
    """MATH's formulas, summed gene by gene and cell by cell."""
    state = draw_state(9, 8, 2, family=family)
    g, w = state.globals, state.globals.precision
    v = torch.cat([torch.ones(8, 1), g.gene_mean[:, 1:]], dim=1)
    vv = torch.einsum("jk,jl->jkl", v, v)
    vv[:, 1:, 1:] += state.gene_covs[:, 1:, 1:]
    bv = g.gene_mean[:, :1] * v
    bv[:, 1:] += state.gene_covs[:, 0, 1:]
    precision = torch.diag(1 / g.scales.cell_var) + torch.einsum("j,jkl->kl", w, vv)
    target = (w * state.y) @ v - w @ (g.mu * v + bv)
    block = local_step(state.problem, g)(state.batch)
    torch.testing.assert_close(block.mean, torch.linalg.solve(precision, target.T).T, **EXACT)
    torch.testing.assert_close(block.cov.numpy(), in_family(torch.linalg.inv(precision).numpy(), family), **EXACT)

    u = torch.cat([torch.ones(9, 1), state.cell_mean[:, 1:]], dim=1)
    uu = torch.einsum("ik,il->ikl", u, u)
    uu[:, 1:, 1:] += state.cell_cov[1:, 1:]
    au = state.cell_mean[:, :1] * u
    au[:, 1:] += state.cell_cov[0, 1:]
    after = update_genes(g, state.statistics, 9, family)
    covs = replace(state, globals=after).gene_covs
    for j in range(8):
        precision = torch.diag(1 / g.scales.gene_var) + w[j] * uu.sum(0)
        target = w[j] * (state.y[:, j] @ u - (g.mu * u + au).sum(0))
        torch.testing.assert_close(after.gene_mean[j], torch.linalg.solve(precision, target), **EXACT)
        torch.testing.assert_close(covs[j].numpy(), in_family(torch.linalg.inv(precision).numpy(), family), **EXACT)


def updated_cells(state):
    block = local_step(state.problem, state.globals)(state.batch)
    return replace(state, cell_mean=block.mean, cell_cov=block.cov)


UPDATES = {
    "cells": updated_cells,
    "genes": lambda s: replace(s, globals=update_genes(s.globals, s.statistics, s.problem.n_cells, s.problem.family)),
    "mu": lambda s: replace(s, globals=update_mu(s.globals, s.statistics, s.problem.n_cells)),
    "noise": lambda s: replace(s, globals=update_noise(s.globals, s.statistics, s.problem.noise)),
    "scales": lambda s: replace(s, globals=s.globals.with_scales_learned(s.statistics.xx[1, 1])),
}


def leaves_of(state, block):
    """Free parameters of a block, and the ELBO as a function of them."""
    g, statistics, n = state.globals, state.statistics, state.problem.n_cells
    mean_field = state.problem.family == "mean_field"

    def at(**changes):
        return elbo(replace(g, **changes), statistics, state.cell_cov, n)

    if block == "cells":
        cov = state.cell_cov.diagonal() if mean_field else state.cell_cov

        def of_cells(mean, cov):
            cov = torch.diag(cov) if mean_field else (cov + cov.T) / 2
            return elbo(g, cell_statistics(state.batch, mean, cov), cov, n)

        return [state.cell_mean, cov], of_cells
    if block == "genes":
        basis = g.gene_basis.diagonal() if mean_field else g.gene_basis
        return [g.gene_mean, g.gene_diagonal, basis], lambda mean, diagonal, basis: at(
            gene_mean=mean, gene_diagonal=diagonal, gene_basis=torch.diag(basis) if mean_field else basis
        )
    if block == "mu":
        return [g.mu, g.mu_var], lambda mu, var: at(mu=mu, mu_var=var)
    if block == "noise":
        if state.problem.noise == "shared":
            return [g.precision[0]], lambda shared: at(precision=shared.expand_as(g.precision))
        return [g.precision], lambda precision: at(precision=precision)
    scales = g.scales
    return [scales.a, scales.b, scales.B], lambda a, b, B: at(scales=replace(scales, a=a, b=b, B=B))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("noise", ["shared", "gene"])
@pytest.mark.parametrize("block", UPDATES)
def test_an_update_ends_at_the_elbos_maximum(draw_state, family, noise, block):
    before = draw_state(14, 11, 2, family=family, noise=noise)
    state = UPDATES[block](before)
    assert state.elbo > before.elbo
    leaves, value = leaves_of(state, block)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    for leaf, gradient in zip(leaves, torch.autograd.grad(value(*leaves), leaves), strict=True):
        # relative to the value: what a change of the leaf by its own size would seem to gain
        assert float((leaf * gradient).detach().abs().max()) < 1e-9 * abs(float(state.elbo))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = [leaf * (1 + 0.05 * torch.randn(leaf.shape, generator=generator).double()) for leaf in leaves]
        with torch.no_grad():
            assert value(*moved) < state.elbo


@pytest.mark.parametrize("fixed", ["a", "b", "B", "sigma"])
def test_a_fixed_scale_stays(draw_state, fixed):
    state = draw_state(6, 5, 2)
    scales = replace(state.globals.scales, fixed=frozenset({fixed}))
    before = replace(state.globals, scales=scales)
    after = update_noise(before.with_scales_learned(state.statistics.xx[1, 1]), state.statistics, "gene")
    values = {name: (getattr(before.scales, name), getattr(after.scales, name)) for name in ("a", "A", "b", "B")}
    values["sigma"] = (before.precision, after.precision)
    for name, (old, new) in values.items():
        assert torch.equal(old, new) == (name in {"A", fixed})


def test_a_nearly_constant_gene_does_not_take_over(draw_state):
    state = draw_state(30, 6, 1)
    n_genes = 6
    y = state.y.clone()
    y[:, 0] = 0
    g = replace(
        state.globals,
        mu=torch.zeros(()).double(),
        mu_var=torch.zeros(()).double(),
        gene_mean=torch.zeros(n_genes, 2).double(),
        gene_diagonal=torch.zeros(n_genes, 2).double(),
    )
    statistics = replace(state.statistics, xx=torch.zeros(3, 3).double(), yx=torch.zeros(n_genes, 3).double())
    statistics = replace(statistics, yy=y.square().mean(0))
    sigma2 = 1 / update_noise(g, statistics, "gene").precision
    np.testing.assert_allclose(sigma2[1:], y.square().mean(0)[1:])
    assert float(sigma2[0]) == pytest.approx(GENE_NOISE_FLOOR * float(y.square().mean()))


@pytest.mark.parametrize("family", FAMILIES)
def test_local_elbo_is_the_sum_of_its_parts(draw_state, eta_moments, family):
    state = updated_cells(draw_state(13, 10, 3, family=family))
    g, scales = state.globals, state.globals.scales
    squares = state.expected_squares(eta_moments)
    w = g.precision.numpy()
    log_density = 0.5 * (np.log(w / (2 * np.pi)) - w * squares).sum(1)
    prior = torch.distributions.MultivariateNormal(torch.zeros(4).double(), torch.diag(scales.cell_var))
    q = torch.distributions.MultivariateNormal(state.cell_mean, state.cell_cov)
    expected = log_density.mean() - float(torch.distributions.kl_divergence(q, prior).mean())
    block = local_step(state.problem, g)(state.batch)
    assert float(block.local_elbo) == pytest.approx(expected, rel=1e-12)


def natural_parameters(g, n_genes):
    """Precisions and precision-weighted means of q(b, B), (m, r+1, r+1) and (m, r+1)."""
    covs = torch.einsum("ik,jk,lk->jil", g.gene_basis, g.gene_diagonal, g.gene_basis)
    precisions = torch.linalg.inv(covs)
    return precisions, (precisions @ g.gene_mean[..., None])[..., 0]


def test_a_step_on_running_averages_is_the_natural_gradient_step(draw_state):
    """Hoffman et al. (2013), eq. 18: natural parameters move by rho towards those of the batch."""
    state, rate = draw_state(12, 7, 2), 0.3
    old, new = state.statistics, draw_state(12, 7, 2, seed=1).statistics
    genes = [update_genes(state.globals, s, 500, "row_block") for s in (old, new, old.blend(new, rate))]
    before, target, after = (natural_parameters(g, 7) for g in genes)
    for start, end, reached in zip(before, target, after, strict=True):
        torch.testing.assert_close(reached, (1 - rate) * start + rate * end, rtol=1e-8, atol=1e-8)


def test_statistics_of_equal_parts_average_to_those_of_the_whole(draw_state, whole_batch):
    state = draw_state(12, 7, 2)
    whole = state.statistics
    parts = None
    for rows in torch.arange(12).view(4, 3):
        part = cell_statistics(whole_batch(state.y[rows]), state.cell_mean[rows], state.cell_cov).scaled(1 / 4)
        parts = part if parts is None else parts.plus(part)
    for name in ("xx", "yx", "yy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), **EXACT)


def test_expected_squares_of_the_optimum_give_the_noise(draw_state):
    state = draw_state(12, 7, 2, noise="shared")
    g = update_noise(state.globals, state.statistics, "shared")
    squares = expected_squares(state.globals, state.statistics)
    np.testing.assert_allclose(1 / g.precision, np.full(7, float(squares.mean())), rtol=1e-12)
