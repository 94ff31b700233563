"""The global step and its statistics against loops over formulas, and its fixed point against autograd."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from rows_by_loops import rows_by_loops
from scvi_lfm.inference.counts.dispersion import update_dispersion
from scvi_lfm.inference.counts.gene_step import MOST_LEVERAGE, Asked, cell_statistics, gene_step
from scvi_lfm.inference.counts.state import CountStatistics
from scvi_lfm.inference.passes import average
from scvi_lfm.model.likelihoods import COUNTS, negative_binomial
from scvi_lfm.posterior import rates

FAMILIES = ["row_block", "mean_field"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}
TERMS = ["S in the rates", "T in the rates", "S in E[u u']", "S in E[a u]"]


def statistics_of(state, y=None, cells=None):
    y, cells = (state.y if y is None else y), (state.cells if cells is None else cells)
    return cell_statistics(state.problem, state.globals, state.features, y, cells)


def same_statistics(one, other, **tolerance):
    for field in fields(CountStatistics):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), **(tolerance or EXACT))


@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("r", [2, 0])
def test_statistics_are_averages_over_cells(draw_state, entries, dense, likelihood, family, r):
    state = draw_state(6, 5, r, likelihood=likelihood, family=family)
    found, by_loops = statistics_of(state), entries(state)
    weight, score = by_loops["weight"], by_loops["score"]
    z = by_loops["eta"] + score / weight
    x = np.column_stack([np.ones(6), state.cells.mean])
    xx = x[:, :, None] * x[:, None, :]
    xx[:, 1:, 1:] += state.S
    np.testing.assert_allclose(found.xx, xx.mean(0), **EXACT)
    np.testing.assert_allclose(dense(found.weighted), np.einsum("ij,ikl->jkl", weight, xx) / 6, **EXACT)
    np.testing.assert_allclose(found.response, np.einsum("ij,ik->jk", weight * z, x) / 6, **EXACT)
    if not COUNTS[likelihood].learns_dispersion:
        assert not found.excess.any()
        assert not found.square.any()
        return
    np.testing.assert_allclose(found.excess, excess(state, by_loops), **EXACT)
    np.testing.assert_allclose(found.square, (weight**2).mean(0), **EXACT)


def excess(state, by_loops):
    """phi K and a scoring step, with what the fit has taken from the residuals."""
    weight, phi = by_loops["weight"], state.globals.dispersion
    leverage = np.minimum(weight * by_loops["var"], MOST_LEVERAGE)
    score = negative_binomial.dispersion_score(state.y, torch.from_numpy(by_loops["rate"]), phi).numpy()
    phi = phi.numpy()
    return (phi * (weight**2).sum(0) + 2 * (1 + phi) * score + (leverage * weight).sum(0)) / len(weight)


def test_leverage_stays_below_one(draw_state, entries):
    """What an uncertain gene with many counts would give back has no bound."""
    state = draw_state(6, 3, 2)
    state = replace(state, T=9 * state.T, globals=replace(state.globals, gene_cov=9 * state.globals.gene_cov))
    by_loops = entries(state)
    assert (by_loops["weight"] * by_loops["var"] > 1).any()
    np.testing.assert_allclose(statistics_of(state).excess, excess(state, by_loops), **EXACT)


def by_loops(state, entries, without=None):
    """Means and covariances of all genes from the docstring's formulas, one term left out if asked."""

    def part(name, cov):
        return np.zeros_like(cov) if name == without else cov

    found = entries(state, part("S in the rates", state.S), part("T in the rates", state.T))
    z = found["eta"] + found["score"] / found["weight"] - float(state.globals.mu)
    in_squares, in_products = part("S in E[u u']", state.S), part("S in E[a u]", state.S)
    P, mean_field = np.diag(1 / state.globals.scales.gene_var.numpy()), state.problem.family == "mean_field"
    cells, none = state.cells.mean.numpy(), np.zeros(len(P))
    return rows_by_loops(found["weight"].T, z.T, cells, in_squares, in_products, P, none, mean_field=mean_field)


@pytest.mark.usefixtures("full_steps")
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m", "r"), [(9, 5, 2), (6, 4, 0)])
def test_is_the_formula(draw_state, entries, dense, likelihood, family, n, m, r):
    state = draw_state(n, m, r, likelihood=likelihood, family=family)
    mean, cov = by_loops(state, entries)
    found = gene_step(state.problem, state.globals, statistics_of(state))
    np.testing.assert_allclose(found.gene_mean, mean, **EXACT)
    np.testing.assert_allclose(dense(found.gene_cov), cov, **EXACT)
    assert found.mu is state.globals.mu


@pytest.mark.usefixtures("full_steps")
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("term", TERMS)
def test_fails_if_a_term_is_dropped(draw_state, entries, likelihood, term):
    """What each term adds is far above what the comparison with the formula lets pass."""
    state = draw_state(9, 5, 2, likelihood=likelihood)
    found = gene_step(state.problem, state.globals, statistics_of(state))
    mean, _ = by_loops(state, entries, without=term)
    assert (np.abs(mean - found.gene_mean.numpy()).max(1) > 1e-4).all()


def converged(state):
    g = state.globals
    for _ in range(300):
        now = replace(state, globals=g)
        after = replace(gene_step(state.problem, g, statistics_of(now)), dispersion=g.dispersion)
        if (after.gene_mean - g.gene_mean).abs().max() < 1e-13:
            return replace(state, globals=after)
        g = after
    pytest.fail("no fixed point was reached")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", COUNTS)
def test_the_fixed_point_is_stationary(draw_state, entries, dense, likelihood, family):
    """In mean and covariance of every gene; for the Poisson with the weights free to follow, too."""
    state = converged(draw_state(12, 3, 2, likelihood=likelihood, family=family))
    g, S, prior = state.globals, torch.from_numpy(state.S), state.globals.gene_prior
    values = entries(state, T=dense(g.gene_cov))
    weight, working = values["weight"], values["eta"] + values["score"] / values["weight"]
    u = torch.cat([torch.ones(12, 1), state.cells.mean[:, 1:]], dim=1)

    def objective(gene, mean, cov, *, exact):
        v = torch.cat([torch.ones(1), mean[1:]])
        eta = g.mu + state.cells.mean[:, 0] + u @ mean
        var = (S @ v) @ v + ((u @ cov) * u).sum(1) + (S[:, 1:, 1:] * cov[1:, 1:]).sum((1, 2))
        kl = kl_divergence(MultivariateNormal(mean, cov), MultivariateNormal(prior.mean, prior.cov))
        if exact:
            eta = eta + state.cells.log_size
            return (state.y[:, gene] * eta - (eta + var / 2).exp()).sum() - kl
        w, z = (torch.from_numpy(part[:, gene]) for part in (weight, working))
        return -0.5 * (w * ((z - eta).square() + var)).sum() - kl

    for exact in (False, True) if likelihood == "poisson" else (False,):
        for gene in range(3):
            mean = g.gene_mean[gene].clone().requires_grad_()
            cov = torch.from_numpy(dense(g.gene_cov)[gene])
            free = (cov.diagonal() if family == "mean_field" else cov).clone().requires_grad_()
            cov = torch.diag(free) if family == "mean_field" else (free + free.T) / 2
            value = objective(gene, mean, cov, exact=exact)
            for leaf, gradient in zip((mean, free), torch.autograd.grad(value, [mean, free]), strict=True):
                assert (leaf * gradient).detach().abs().max() < 1e-8 * value.detach().abs()
            for seed in range(3):
                noise = 0.1 * torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
                assert objective(gene, mean + noise, cov, exact=exact) < value


@pytest.mark.parametrize("likelihood", COUNTS)
def test_scales_and_dispersions_follow_unless_they_are_fixed(draw_state, likelihood):
    state = draw_state(9, 5, 2, likelihood=likelihood)
    statistics = statistics_of(state)
    g = replace(state.globals, scales=replace(state.globals.scales, fixed=frozenset({"a", "A", "b", "B"})))
    kept = gene_step(state.problem, g, statistics).scales
    free = replace(g, scales=replace(g.scales, fixed=frozenset()))
    learned = gene_step(state.problem, free, statistics)
    for name in ("a", "A", "b", "B"):
        assert torch.equal(getattr(kept, name), getattr(g.scales, name))
    squares = learned.gene_mean.square() + torch.from_numpy(np.array([np.diag(T) for T in unpacked(learned.gene_cov)]))
    assert float(learned.scales.a**2) == pytest.approx(float(statistics.xx[1, 1]), rel=1e-12)
    assert float(learned.scales.b**2) == pytest.approx(float(squares[:, 0].mean()), rel=1e-12)
    torch.testing.assert_close(learned.scales.B**2, squares[:, 1:].mean(0), rtol=1e-12, atol=0)
    assert torch.equal(learned.scales.A, g.scales.A)
    if not COUNTS[likelihood].learns_dispersion:
        assert torch.equal(learned.dispersion, g.dispersion)
        return
    # half way to the estimate, in logs
    estimate = update_dispersion(statistics, state.problem.n_cells)
    torch.testing.assert_close(2 * learned.dispersion.log(), (estimate * g.dispersion).log(), rtol=1e-10, atol=1e-12)


def unpacked(values):
    full = torch.zeros(len(values), 3, 3, dtype=values.dtype)
    rows, columns = np.tril_indices(3)
    full[:, rows, columns] = full[:, columns, rows] = values
    return full.numpy()


def test_blocks_of_genes_change_nothing(draw_state, monkeypatch):
    state = draw_state(4, 700, 2)
    whole = statistics_of(state)
    monkeypatch.setattr(rates, "ENTRIES_PER_BLOCK", 1)
    same_statistics(statistics_of(state), whole)


def test_statistics_of_parts_average_to_those_of_the_whole(draw_state):
    state = draw_state(12, 7, 2)
    parts = [(rows, statistics_of(state, state.y[rows], state.cells.rows(rows))) for rows in whole_in_parts()]
    total = parts[0][1].scaled(5 / 12)
    for rows, part in parts[1:]:
        total = total.plus(part.scaled(len(rows) / 12))
    same_statistics(total, statistics_of(state))


def whole_in_parts():
    return torch.arange(12).split([5, 4, 3])


@pytest.mark.parametrize("every", [3, 4, 50])
def test_one_cell_in_some_can_tell_about_dispersions(draw_state, every):
    """Its share of the cells is given back; all else is from every cell."""
    state = draw_state(13, 7, 2)
    asked = Asked.one_in(every, 13)
    found = cell_statistics(state.problem, state.globals, state.features, state.y, state.cells, asked)
    whole, some = statistics_of(state), torch.arange(0, 13, every)
    part = statistics_of(state, state.y[some], state.cells.rows(some))
    same_statistics(found, replace(whole, excess=part.excess, square=part.square))
    parts = []
    for cells in torch.arange(13).split([5, 1, 4, 3]):  # some have none to ask
        of_part = Asked(torch.nonzero(torch.isin(cells, some)).flatten(), len(some) / 13)
        own = state.y[cells], state.cells.rows(cells), of_part
        new = cell_statistics(state.problem, state.globals, state.features, *own)
        parts.append((len(cells), new))
    same_statistics(average(parts, 13), found)


def test_running_averages(draw_state):
    old, new = (statistics_of(draw_state(5, 4, 2, seed=seed)) for seed in (0, 1))
    assert old.levels is None  # of counts
    names = [field.name for field in fields(CountStatistics) if field.name != "levels"]
    before = {name: getattr(old, name).clone() for name in names}
    assert old.blend(new, 1.0) is new
    blended = old.blend(new, 0.3)
    for name, value in before.items():
        torch.testing.assert_close(getattr(blended, name), 0.7 * value + 0.3 * getattr(new, name), **EXACT)


@pytest.mark.usefixtures("full_steps")
def test_a_step_on_running_averages_is_the_natural_gradient_step(draw_state):
    """Natural parameters of q(b, B) move by the rate towards those of the batch."""
    state, rate = draw_state(12, 7, 2), 0.3
    other = replace(draw_state(12, 7, 2, seed=1), globals=state.globals, T=state.T)
    old, new = statistics_of(state), statistics_of(other)
    found = []
    for statistics in (old, new, old.scaled(1.0).blend(new, rate)):
        g = gene_step(state.problem, state.globals, statistics)
        precision = np.linalg.inv(unpacked(g.gene_cov))
        found.append((precision, np.einsum("jkl,jl->jk", precision, g.gene_mean.numpy())))
    for start, end, reached in zip(*found, strict=True):
        np.testing.assert_allclose(reached, (1 - rate) * start + rate * end, rtol=1e-8, atol=1e-8)


def test_float32_statistics_are_those_of_float64(draw_state):
    state = draw_state(200, 6, 2)
    exact = statistics_of(state)
    g, cells = state.globals, state.cells
    low = replace(
        state,
        y=state.y.float(),
        cells=type(cells)(cells.mean.float(), cells.cov.float(), cells.log_size.float()),
        globals=replace(g, gene_mean=g.gene_mean.float(), gene_cov=g.gene_cov.float(), dispersion=g.dispersion.float()),
    )
    found = statistics_of(low)
    assert {getattr(found, name).dtype for name in ("weighted", "response", "excess", "square")} == {torch.float32}
    assert found.xx.dtype == torch.float64
    for name in ("xx", "weighted", "response", "excess", "square"):
        expected = getattr(exact, name)
        error = (getattr(found, name).double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, name
