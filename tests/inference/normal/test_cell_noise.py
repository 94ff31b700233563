"""Noise that differs by cell: the closed forms against dense algebra and against the Pyro program."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

import scvi_lfm as lfm
from as_blocks import as_blocks
from scvi_lfm.inference.normal.cell_noise import LARGEST, LEAST
from scvi_lfm.inference.normal.elbo import elbo, kl_genes
from scvi_lfm.inference.normal.natural_gradient import (
    expected_squares,
    update_genes,
    update_mu,
    update_noise,
)
from scvi_lfm.inference.normal.sweep import local_step, sweep
from scvi_lfm.inference.state import Problem
from scvi_lfm.model import Scales, model
from scvi_lfm.model.priors import kl_of_mu

FAMILIES = ["row_block", "mean_field"]
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def batch(whole_batch):
    sigma, cell_sigma = np.geomspace(0.5, 2, 17), np.random.default_rng(1).permutation(np.geomspace(0.5, 2, 24))
    return whole_batch(lfm.datasets.simulate(24, 17, 3, mu=3.0, sigma=sigma, cell_sigma=cell_sigma).X)


@pytest.fixture(scope="module", params=FAMILIES)
def local(request, draw_state):
    """Genes at random, and the cells that are optimal given them, with dense covariances S_i."""
    state = draw_state(12, 30, 2, family=request.param)
    problem = Problem(12, 30, request.param, "cell_gene")
    block = local_step(problem, state.globals)(state.batch)
    cov = block.covs
    diagonal = 1 / (cov.eig / cov.sigma[:, None] ** 2 + 1)
    return state, block, torch.einsum("ik,nk,lk->nil", cov.basis, diagonal, cov.basis)


def squares_of(state, block, S, eta_moments):
    """E (y_ij - eta_ij)^2, entry by entry."""
    g = state.globals
    rows = [
        eta_moments(float(g.mu), mean[None].numpy(), cov.numpy(), g.gene_mean.numpy(), state.gene_covs.numpy())
        for mean, cov in zip(block.mean, S, strict=True)
    ]
    mean, var = (np.concatenate(part) for part in zip(*rows, strict=True))
    return torch.from_numpy((state.y.numpy() - mean) ** 2 + var + float(g.mu_var))


def test_cells_are_optimal_given_genes_and_their_noise(local, eta_moments):
    state, block, S = local
    g, family = state.globals, state.problem.family
    omega, w, T = block.omega, g.precision, state.gene_covs
    v = torch.cat([torch.ones(30, 1), g.gene_mean[:, 1:]], dim=1)
    vv = v[:, :, None] * v[:, None, :]
    vv[:, 1:, 1:] += T[:, 1:, 1:]
    bv = g.gene_mean[:, :1] * v
    bv[:, 1:] += T[:, 0, 1:]
    for i in range(12):
        precision = torch.diag(1 / g.scales.cell_var) + omega[i] * torch.einsum("j,jkl->kl", w, vv)
        target = omega[i] * (w * (state.y[i] - g.mu)) @ v - omega[i] * w @ bv
        cov = torch.linalg.inv(precision) if family == "row_block" else torch.diag(1 / precision.diagonal())
        torch.testing.assert_close(S[i], cov)
        torch.testing.assert_close(block.mean[i], torch.linalg.solve(precision, target))
    squares = squares_of(state, block, S, eta_moments) @ w
    torch.testing.assert_close(1 / omega, (squares / 30).clamp(LEAST, LARGEST))


def test_genes_meet_cells_by_weight(local, eta_moments):
    state, block, S = local
    statistics, omega = block.statistics(state.batch), block.omega
    u = torch.cat([torch.ones(12, 1), block.mean[:, 1:]], dim=1)
    uu = u[:, :, None] * u[:, None, :]
    uu[:, 1:, 1:] += S[:, 1:, 1:]
    au = block.mean[:, :1] * u
    au[:, 1:] += S[:, 0, 1:]
    squares = squares_of(state, block, S, eta_moments)
    torch.testing.assert_close(expected_squares(state.globals, statistics), omega @ squares / 12)
    g = update_genes(state.globals, statistics, 12, "row_block")
    for j, w in enumerate(state.globals.precision):
        precision = torch.diag(1 / g.scales.gene_var) + w * torch.einsum("i,ikl->kl", omega, uu)
        target = w * ((omega * (state.y[:, j] - g.mu)) @ u - omega @ au)
        torch.testing.assert_close(g.gene_mean[j], torch.linalg.solve(precision, target))
        cov = (g.gene_basis * g.gene_diagonal[j]) @ g.gene_basis.T
        torch.testing.assert_close(cov, torch.linalg.inv(precision))
    residual = state.y - block.mean[:, :1] - g.gene_mean[:, 0] - block.mean[:, 1:] @ g.gene_mean[:, 1:].T
    var = 1 / (100**-2 + omega.sum() * g.precision.sum())
    torch.testing.assert_close(update_mu(g, statistics, 12).mu, var * omega @ residual @ g.precision)


def test_local_and_global_terms_make_up_the_elbo(local):
    state, block, _ = local
    g = state.globals
    whole = elbo(g, block.statistics(state.batch), block.cov, 12)
    assert float(12 * block.local_elbo - kl_genes(g) - kl_of_mu(g.mu, g.mu_var)) == pytest.approx(
        float(whole), rel=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_elbo_is_that_of_the_program(draw_state, family):
    """Gauss-Hermite quadrature with two nodes per latent is exact for the expected log density."""
    state = draw_state(2, 2, 1, family=family)
    g = state.globals
    block = local_step(Problem(2, 2, family, "cell_gene"), g)(state.batch)
    cov = block.covs
    S = torch.einsum("ik,nk,lk->nil", cov.basis, 1 / (cov.eig / cov.sigma[:, None] ** 2 + 1), cov.basis)
    nodes = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    z_mu, z_cells, z_genes = torch.cartesian_prod(*[nodes] * 9).split([1, 4, 4], dim=1)
    cells = block.mean + torch.einsum("nkl,dnl->dnk", torch.linalg.cholesky(S), z_cells.view(-1, 2, 2))
    genes = g.gene_mean + torch.einsum("nkl,dnl->dnk", torch.linalg.cholesky(state.gene_covs), z_genes.view(-1, 2, 2))
    latents = {
        "mu": (g.mu + g.mu_var.sqrt() * z_mu)[:, :, None],
        "a": cells[:, :, None, 0],
        "A": cells[:, :, None, 1:],
        "b": genes[:, None, :, 0],
        "B": genes[:, None, :, 1:],
    }
    sigma = cov.sigma[:, None] * g.precision.rsqrt()

    def many():
        with pyro.plate("draws", 512, dim=-3):
            return model(state.y, Scales(g.scales.a, g.scales.A, g.scales.b, g.scales.B, sigma))

    trace = poutine.trace(poutine.condition(many, data=latents)).get_trace()
    trace.compute_log_prob()
    log_joint = sum(trace.nodes[name]["log_prob"].flatten(1).sum(1) for name in (*latents, "y"))
    entropy = sum(
        0.5 * torch.logdet(2 * math.pi * math.e * matrix) for matrix in (g.mu_var[None, None], *S, *state.gene_covs)
    )
    value = elbo(g, block.statistics(state.batch), block.cov, 2)
    assert float(value) == pytest.approx(float(log_joint.mean() + entropy), rel=1e-10)


def test_no_part_of_coordinate_ascent_lowers_the_elbo(batch, first_step):
    problem = Problem(24, 17, "row_block", "cell_gene", rotates=False)
    g = first_step(problem, batch, 4).globals
    values = []
    for _ in range(8):
        block = local_step(problem, g)(batch)
        statistics = block.statistics(batch)
        values.append(elbo(g, statistics, block.cov, 24))
        g, statistics = statistics.normalised(g)
        values.append(elbo(g, statistics, block.cov, 24))
        for update in (
            lambda g, s: update_genes(g, s, 24, "row_block"),
            lambda g, s: update_mu(g, s, 24),
            lambda g, s: update_noise(g, s, "cell_gene"),
        ):
            g = update(g, statistics)
            values.append(elbo(g, statistics, block.cov, 24))
    assert np.diff(values).min() > -ROUNDING * abs(values[-1])
    assert values[-1] > values[0] + 0.01


def test_no_sweep_with_gauge_moves_lowers_the_elbo(batch, first_step):
    problem = Problem(24, 17, "row_block", "cell_gene")
    step = first_step(problem, batch, 4)
    values = []
    for _ in range(20):
        step = sweep(problem, step.globals, as_blocks(batch))
        values.append(float(elbo(step.globals, step.statistics, step.cell_cov, 24)))
        assert abs(float(step.statistics.log_weight)) < ROUNDING
    assert np.diff(values).min() > -ROUNDING * abs(values[-1])
    assert values[-1] > values[0] + 0.01


def test_an_empty_cell_does_not_take_over(whole_batch, first_step):
    values = lfm.datasets.simulate(60, 40, 2, mu=2.0).X
    values[:3] = 0
    batch, problem = whole_batch(values), Problem(60, 40, "row_block", "cell_gene")
    step = first_step(problem, batch, 3)
    for _ in range(30):
        step = sweep(problem, step.globals, as_blocks(batch))
    omega = local_step(problem, step.globals)(batch).omega
    assert omega.isfinite().all()
    assert omega.max() <= 1 / LEAST
    assert omega[3:].max() < 4
