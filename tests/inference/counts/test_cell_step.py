"""The local step against loops over the formulas of its docstring, and its fixed point against autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from rows_by_loops import rows_by_loops
from scvi_lfm.inference.counts.cell_step import cell_step
from scvi_lfm.inference.equations import TRUST
from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.posterior import rates

FAMILIES = ["row_block", "mean_field"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}
TERMS = ["S in the rates", "T in the rates", "T in E[v v']", "T in E[b v]"]


def step(state, prior=None, cells=None):
    g, problem = state.globals, state.problem
    prior = g.cell_prior if prior is None else prior
    cells = state.cells if cells is None else cells
    return cell_step(problem, state.y, cells, state.features, g.mu, g.parameters, prior)


def by_loops(state, entries, prior, without=None):
    """Means and covariances of all cells from the docstring's formulas, one term left out if asked."""

    def part(name, cov):
        return np.zeros_like(cov) if name == without else cov

    found = entries(state, part("S in the rates", state.S), part("T in the rates", state.T))
    z = found["eta"] + found["score"] / found["weight"] - float(state.globals.mu)
    in_squares, in_products = part("T in E[v v']", state.T), part("T in E[b v]", state.T)
    P, mean_field = np.linalg.inv(prior.cov.numpy()), state.problem.family == "mean_field"
    genes = state.globals.gene_mean.numpy()
    return rows_by_loops(
        found["weight"], z, genes, in_squares, in_products, P, prior.mean.numpy(), mean_field=mean_field
    )


@pytest.mark.usefixtures("full_steps")
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m", "r"), [(5, 9, 2), (4, 6, 0)])
def test_is_the_formula(draw_state, entries, dense, likelihood, family, n, m, r):
    state = draw_state(n, m, r, likelihood=likelihood, family=family)
    mean, cov = by_loops(state, entries, state.globals.cell_prior)
    found, _ = step(state)
    np.testing.assert_allclose(found.mean, mean, **EXACT)
    np.testing.assert_allclose(dense(found.cov), cov, **EXACT)
    assert found.log_size is state.cells.log_size


@pytest.mark.usefixtures("full_steps")
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("term", TERMS)
def test_fails_if_a_term_is_dropped(draw_state, entries, likelihood, term):
    """What each term adds is far above what the comparison with the formula lets pass."""
    state = draw_state(5, 9, 2, likelihood=likelihood)
    found, _ = step(state)
    mean, _ = by_loops(state, entries, state.globals.cell_prior, without=term)
    assert (np.abs(mean - found.mean.numpy()).max(1) > 1e-4).all()


@pytest.mark.usefixtures("full_steps")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_general_prior_is_honoured(draw_state, entries, dense, general_prior, family):
    state, prior = draw_state(5, 9, 2, family=family), general_prior(3)
    mean, cov = by_loops(state, entries, prior)
    found, _ = step(state, prior)
    np.testing.assert_allclose(found.mean, mean, **EXACT)
    np.testing.assert_allclose(dense(found.cov), cov, **EXACT)


def test_no_step_changes_log_rates_by_more_than_trusted(draw_state, entries):
    """Cells that start far away: the expected square of the change of eta, averaged by weight."""
    state = draw_state(6, 200, 2)
    far = replace(state, cells=replace(state.cells, mean=state.cells.mean + 3))
    found, _ = step(far)
    v = np.column_stack([np.ones(200), state.globals.gene_mean[:, 1:]])
    vv = v[:, :, None] * v[:, None, :]
    vv[:, 1:, 1:] += state.T[:, 1:, 1:]
    moved, weight = (found.mean - far.cells.mean).numpy(), entries(far)["weight"]
    squares = np.einsum("ij,jkl,ik,il->i", weight, vv, moved, moved) / weight.sum(1)
    np.testing.assert_allclose(np.sqrt(squares), TRUST, rtol=1e-9)


def converged(state, prior):
    cells, missing = state.cells, torch.ones(1)
    for _ in range(300):
        if float(missing.max()) < 1e-22:
            return cells
        cells, missing = step(state, prior, cells)
    pytest.fail("no fixed point was reached")


def divergence(mean, cov, prior):
    return kl_divergence(MultivariateNormal(mean, cov), MultivariateNormal(prior.mean, prior.cov))


def plug_in_objective(state, cell, mean, cov, values, prior):
    """ELBO of one cell if each count were a Normal value of eta, at given weights and working values."""
    g, T = state.globals, torch.from_numpy(state.T)
    v = torch.cat([torch.ones(len(T), 1), g.gene_mean[:, 1:]], dim=1)
    u = torch.cat([torch.ones(1), mean[1:]])
    eta = g.mu + g.gene_mean[:, 0] + v @ mean
    var = (T @ u) @ u + ((v @ cov) * v).sum(1) + (T[:, 1:, 1:] * cov[1:, 1:]).sum((1, 2))
    weight, working = (torch.from_numpy(values[name][cell]) for name in ("weight", "working"))
    return -0.5 * (weight * ((working - eta).square() + var)).sum() - divergence(mean, cov, prior)


def exact_objective(state, cell, mean, cov, prior):
    """ELBO of one cell under the Poisson, were eta Normal."""
    g, T = state.globals, torch.from_numpy(state.T)
    v = torch.cat([torch.ones(len(T), 1), g.gene_mean[:, 1:]], dim=1)
    u = torch.cat([torch.ones(1), mean[1:]])
    eta = g.mu + g.gene_mean[:, 0] + v @ mean + state.cells.log_size[cell]
    var = (T @ u) @ u + ((v @ cov) * v).sum(1) + (T[:, 1:, 1:] * cov[1:, 1:]).sum((1, 2))
    return (state.y[cell] * eta - (eta + var / 2).exp()).sum() - divergence(mean, cov, prior)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", COUNTS)
def test_the_fixed_point_is_stationary(draw_state, entries, dense, general_prior, likelihood, family):
    """In mean and covariance; for the Poisson with the weights free to follow, too, and it is a maximum."""
    state, prior = draw_state(3, 15, 2, likelihood=likelihood, family=family), general_prior(3)
    cells = converged(state, prior)
    values = entries(replace(state, cells=cells), S=dense(cells.cov))
    values["working"] = values["eta"] + values["score"] / values["weight"]
    objectives = [lambda cell, mean, cov: plug_in_objective(state, cell, mean, cov, values, prior)]
    if likelihood == "poisson":
        objectives.append(lambda cell, mean, cov: exact_objective(state, cell, mean, cov, prior))
    for objective in objectives:
        for cell in range(3):
            mean = cells.mean[cell].clone().requires_grad_()
            cov = torch.from_numpy(dense(cells.cov)[cell])
            free = (cov.diagonal() if family == "mean_field" else cov).clone().requires_grad_()
            cov = torch.diag(free) if family == "mean_field" else (free + free.T) / 2
            value = objective(cell, mean, cov)
            gradients = torch.autograd.grad(value, [mean, free])
            for leaf, gradient in zip((mean, free), gradients, strict=True):
                assert (leaf * gradient).detach().abs().max() < 1e-8 * value.detach().abs()
            for seed in range(3):
                noise = 0.1 * torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
                assert objective(cell, mean + noise, cov) < value


def test_a_step_from_the_fixed_point_has_nothing_to_gain(draw_state):
    state = draw_state(4, 12, 2)
    prior = state.globals.cell_prior
    cells = converged(state, prior)
    again, missing = step(state, prior, cells)
    torch.testing.assert_close(again.mean, cells.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(again.cov, cells.cov, rtol=1e-10, atol=1e-12)
    assert float(missing.max()) < 1e-20
    assert (step(state)[1] > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", COUNTS)
def test_cells_of_no_depth_keep_their_prior(draw_state, dense, likelihood, family):
    state = draw_state(4, 9, 2, likelihood=likelihood, family=family)
    cells = replace(state.cells, log_size=torch.full((4,), -80.0, dtype=torch.float64))
    state, prior = replace(state, y=torch.zeros_like(state.y)), state.globals.cell_prior
    found, _ = step(state, prior, cells)
    np.testing.assert_allclose(found.mean, 0, atol=1e-15)
    np.testing.assert_allclose(dense(found.cov), [prior.cov.numpy()] * 4, rtol=1e-12, atol=1e-30)


def test_neither_blocks_of_genes_nor_other_cells_change_a_cell(draw_state, monkeypatch):
    state = draw_state(4, 700, 2)
    whole, missing = step(state)
    monkeypatch.setattr(rates, "ENTRIES_PER_BLOCK", 1)
    assert len(state.features.blocks(4)) == 4
    parts, again = step(state)
    torch.testing.assert_close(parts.mean, whole.mean, **EXACT)
    torch.testing.assert_close(parts.cov, whole.cov, **EXACT)
    torch.testing.assert_close(again, missing, **EXACT)
    some = torch.tensor([2, 0])
    alone, _ = step(replace(state, y=state.y[some], cells=state.cells.rows(some)))
    torch.testing.assert_close(alone.mean, whole.mean[some], **EXACT)
