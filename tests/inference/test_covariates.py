"""Covariates in the engines: against the Pyro program, dense solves, and each other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyro import poutine

from as_blocks import as_blocks
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.equations import solve_rows
from scvi_lfm.inference.moves import _best_absorption, best_move
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.natural_gradient import cell_statistics
from scvi_lfm.inference.normal.start import add_random_factors, fit_without_factors
from scvi_lfm.inference.normal.sweep import insert_known, local_step, sweep
from scvi_lfm.inference.state import Problem
from scvi_lfm.model import Gaussian, Scales, model
from scvi_lfm.model.priors import with_known
from scvi_lfm.posterior.gauge import absorb

P, R = 2, 2


@pytest.fixture
def state(draw_state):
    """A state of the model with P + R factors, the first P of which become covariates."""
    drawn = draw_state(12, 9, P + R)
    known = torch.randn(12, P, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    g, scales = drawn.globals, drawn.globals.scales
    scales = replace(scales, A=scales.A[P:], B=scales.B[P:], beta=scales.B[:P])
    free = [0, *range(1 + P, 1 + P + R)]
    return replace(
        drawn,
        batch=replace(drawn.batch, covariates=known.numpy()),
        globals=replace(g, scales=scales),
        cell_mean=insert_known(drawn.cell_mean[:, free], known),
        cell_cov=with_known(drawn.cell_cov[free][:, free], P),
    )


def test_elbo_is_the_programs(state):
    """Draws of q, made here, through the program's log joint."""
    g, n_draws = state.globals, 4000
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(n_draws, *shape, generator=generator, dtype=torch.float64)

    free = [0, *range(1 + P, 1 + P + R)]
    S = state.cell_cov[free][:, free]
    cells = state.cell_mean[:, free] + noise(12, 1 + R) @ torch.linalg.cholesky(S).T
    gene_root = torch.linalg.cholesky(state.gene_covs)
    genes = g.gene_mean + torch.einsum("jkl,djl->djk", gene_root, noise(9, 1 + P + R))
    mu = g.mu + g.mu_var.sqrt() * noise()
    scales = Scales(g.scales.a, g.scales.A, g.scales.b, g.scales.B, g.precision.rsqrt(), beta=g.scales.beta)
    total = []
    for d in range(n_draws // 4):
        latents = {"mu": mu[d], "a": cells[d, :, :1], "A": cells[d, :, None, 1:], "b": genes[d, :, 0]}
        latents |= {"beta": genes[d, :, 1 : 1 + P], "B": genes[d, :, 1 + P :]}
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(
            state.y, scales, covariates=state.batch.known
        )
        total.append(float(trace.log_prob_sum()))
    entropies = [g.mu_var[None, None], *S.expand(12, -1, -1), *state.gene_covs]
    entropy = float(sum(0.5 * torch.logdet(2 * math.pi * math.e * cov) for cov in entropies))
    assert abs(np.mean(total) + entropy - float(state.elbo)) < 4 * np.std(total) / math.sqrt(len(total))


def test_local_step_is_the_maximum_and_its_elbo_is_the_whole_one(state):
    block = local_step(state.problem, state.globals)(state.batch)
    g, n = state.globals, 12

    def value(mean, cov):
        return float(elbo(g, cell_statistics(state.batch, mean, cov), cov, n))

    best = value(block.mean, block.cov)
    from scvi_lfm.inference.normal.elbo import kl_genes
    from scvi_lfm.model.priors import kl_of_mu

    assert n * float(block.local_elbo) - float(kl_genes(g) + kl_of_mu(g.mu, g.mu_var)) == pytest.approx(best, rel=1e-10)
    assert torch.equal(block.mean[:, 1 : 1 + P], state.batch.known)
    assert not block.cov[1 : 1 + P].any()
    for k in (0, 1 + P, 2 + P):
        step = torch.zeros_like(block.mean)
        step[:, k] = 1e-3
        assert value(block.mean + step, block.cov) < best
        assert value(block.mean - step, block.cov) < best


def test_absorption_is_the_best_of_its_kind_and_changes_no_prediction(state, eta_moments):
    g, xx = state.globals, state.statistics.xx
    xi_xi = g.second_moment()

    def after(move):
        return replace(
            state,
            globals=g.moved(move),
            cell_mean=move.cells(state.cell_mean),
            cell_cov=move.cell_cov(state.cell_cov),
        )

    best = _best_absorption(g.mu, g.scales, xx, xi_xi, 12)
    moved = after(best)
    for one, other in zip(_eta(moved, eta_moments), _eta(state, eta_moments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.cell_mean[:, 1 : 1 + P], state.batch.known)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        nearby = absorb(
            1e-3 * torch.randn(1 + R, P, generator=generator, dtype=torch.float64) * torch.tensor([[0.0], [1], [1]])
        )
        assert after(best.then(nearby)).elbo < moved.elbo
    whole, _ = best_move(g, xx, 12, rotates=False)
    assert after(whole).elbo >= moved.elbo


def _eta(state, eta_moments):
    g, cov = state.globals, state.cell_cov
    return eta_moments(float(g.mu), state.cell_mean.numpy(), cov.numpy(), g.gene_mean.numpy(), state.gene_covs.numpy())


def test_coordinate_ascent_is_monotone_and_finds_the_coefficients():
    rng = np.random.default_rng(0)
    n, m = 200, 60
    z = rng.standard_normal((n, 2))
    z -= z.mean(0)
    beta = rng.standard_normal((m, 2))
    y = rng.standard_normal(m) + z @ beta.T + rng.standard_normal((n, 2)) @ rng.standard_normal((2, m))
    matrix = CellMatrix.of(y + 0.3 * rng.standard_normal((n, m)), covariates=z)
    problem = Problem(n, m, "row_block", "shared")
    batch = matrix.batch(None, torch.device("cpu"), torch.float64)
    start = fit_without_factors(problem, as_blocks(batch), {})
    step = add_random_factors(problem, start.globals, as_blocks(batch), 2, {}, torch.Generator().manual_seed(0))
    values = []
    for _ in range(8):
        step = sweep(problem, step.globals, as_blocks(batch))
        values.append(float(elbo(step.globals, step.statistics, step.cell_cov, n)))
    assert (np.diff(values) > -1e-6 * abs(values[0])).all()
    found = step.globals.gene_mean.numpy()
    # up to what factors and activity can take up
    taken = np.column_stack([np.ones(m), found[:, 3:]])
    left = (found[:, 1:3] - beta) - taken @ np.linalg.lstsq(taken, found[:, 1:3] - beta, rcond=None)[0]
    assert np.sqrt((left**2).mean()) < 0.05


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
def test_rows_with_known_coordinates_are_solved_by_restriction(family):
    rng = np.random.default_rng(0)
    k, free = 1 + P + R, [0, *range(1 + P, 1 + P + R)]
    factor = rng.standard_normal((5, k, k))
    H, h = factor @ factor.swapaxes(1, 2), rng.standard_normal((5, k))
    root = rng.standard_normal((1 + R, 1 + R))
    prior = Gaussian(
        torch.from_numpy(rng.standard_normal(1 + R)),
        torch.from_numpy(root @ root.T + np.eye(1 + R)),
        torch.from_numpy(rng.standard_normal((1 + R, P))),
    )
    current = torch.from_numpy(rng.standard_normal((5, k)))
    rows, columns = np.tril_indices(k)
    solved = solve_rows(torch.from_numpy(H[:, rows, columns]), torch.from_numpy(h), prior, family, current)
    for i in range(5):
        z = current[i, 1 : 1 + P].numpy()
        precision = np.linalg.inv(prior.cov.numpy())
        A = precision + H[i][np.ix_(free, free)]
        centre = prior.mean.numpy() + prior.slope.numpy() @ z
        expected = np.linalg.solve(A, precision @ centre + h[i, free] - H[i][np.ix_(free, range(1, 1 + P))] @ z)
        np.testing.assert_allclose(solved.mean[i, free], expected, rtol=1e-8)
        np.testing.assert_array_equal(solved.mean[i, 1 : 1 + P], z)
        cov = np.zeros((k, k))
        cov[np.ix_(free, free)] = np.linalg.inv(A) if family == "row_block" else np.diag(1 / np.diag(A))
        np.testing.assert_allclose(solved.cov[i], cov[rows, columns], rtol=1e-8, atol=1e-12)
