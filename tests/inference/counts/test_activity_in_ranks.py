"""What dropped factors do to all genes alike goes to the activity of cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.inference.counts import ranks
from scvi_lfm.inference.counts.gene_step import cell_statistics
from scvi_lfm.inference.counts.ranks import activity_last, leading_factors

FIRST, R = 0, 3


@pytest.fixture(params=["row_block", "mean_field"])
def state(request, draw_state):
    """Three factors, of which the first has long loadings that are nearly the same in all genes; scales are learned."""
    state = draw_state(14, 10, R, family=request.param)
    g = state.globals
    alike = g.gene_mean.clone()
    alike[:, 1 + FIRST] = 2 + 0.05 * alike[:, 1 + FIRST]
    scales = replace(g.scales, A=torch.ones(R, dtype=torch.float64), fixed=frozenset("A"))
    return replace(state, globals=replace(g, gene_mean=alike, scales=scales))


def parts(state):
    statistics = cell_statistics(state.problem, state.globals, state.features, state.y, state.cells)
    return state.problem, state.globals, state.cells, statistics


def expected(g, cells):
    return g.mu + cells.mean[:, :1] + g.gene_mean[:, 0] + cells.mean[:, 1:] @ g.gene_mean[:, 1:].T


def with_fixed(parts, name):
    problem, g, cells, statistics = parts
    return problem, replace(g, scales=replace(g.scales, fixed=frozenset({"A", name}))), cells, statistics


def test_the_factor_that_is_alike_in_all_genes_comes_last(state, entries):
    problem, g, cells, statistics = parts(state)
    new, moved, averages = activity_last(problem, g, cells, statistics)
    np.testing.assert_allclose(expected(new, moved), expected(g, cells), atol=1e-9)
    loadings, weight = new.gene_mean[:, 1:].numpy(), entries(state)["weight"].mean(0)
    if state.problem.family == "row_block":
        around = loadings - weight @ loadings / weight.sum()
        # as uncertain as they are: sums over genes of second moments around the means fall from factor to factor
        covs = np.zeros((R, R))
        rows, columns = np.tril_indices(R + 1)
        for (i, j), total in zip(zip(rows, columns, strict=True), new.gene_cov.sum(0).numpy(), strict=True):
            if i and j:
                covs[i - 1, j - 1] = covs[j - 1, i - 1] = total
        moment = around.T @ around + covs
        np.testing.assert_allclose(moment, np.diag(np.diag(moment)), atol=1e-9)
        assert (np.diff(np.diag(moment)) < 0).all()
        np.testing.assert_allclose(averages.xx[2:, 2:], np.eye(R), atol=1e-9)
    before = g.gene_mean[:, 1:].numpy()
    assert np.abs(before.mean(0)).argmax() == FIRST
    assert np.abs(loadings.mean(0) * np.sqrt(np.diag(averages.xx)[2:])).argmax() == R - 1


def test_dropped_factors_leave_their_mean_loadings(state, entries, monkeypatch, dense):
    monkeypatch.setattr(ranks, "GENE_STEPS", 0)
    problem, g, cells, statistics = parts(state)
    less, rest, averages = leading_factors(problem, g, cells, statistics, 1)
    weight = entries(state)["weight"].mean(0)
    means = weight @ g.gene_mean[:, 2:].numpy() / weight.sum()
    activity = (cells.mean[:, 0] + cells.mean[:, 2:] @ torch.from_numpy(means)).numpy()
    np.testing.assert_allclose(rest.mean[:, 0], activity, atol=1e-12)
    np.testing.assert_array_equal(rest.mean[:, 1], cells.mean[:, 1])
    direction = np.array([1, 0, *means])
    var = np.einsum("k,ikl,l->i", direction, state.S, direction)
    np.testing.assert_allclose(dense(rest.cov)[:, 0, 0], var, atol=1e-12)
    # statistics are those of the full q, in which mean field leaves no covariances either
    square = (activity**2 + var).mean()
    assert float(averages.xx[1, 1]) == pytest.approx(square, rel=1e-9)
    assert float(less.scales.a) == pytest.approx(np.sqrt(square), rel=1e-9)


def test_no_other_choice_is_closer(state, entries, monkeypatch):
    """Among constants in place of dropped loadings, the mean by weight is the one of least squares."""
    monkeypatch.setattr(ranks, "GENE_STEPS", 0)
    problem, g, cells, statistics = parts(state)
    less, rest, _ = leading_factors(problem, g, cells, statistics, R - 1)
    weight, eta = entries(state)["weight"].mean(0), expected(g, cells)
    lost = ((eta - expected(less, rest)).square() @ torch.from_numpy(weight)).sum()
    for change in (-0.1, 0.1):
        other = replace(rest, mean=rest.mean + change * torch.nn.functional.pad(cells.mean[:, -1:], (0, R - 1)))
        assert ((eta - expected(less, other)).square() @ torch.from_numpy(weight)).sum() > lost


def test_an_activity_of_given_scale_takes_nothing(state, monkeypatch):
    monkeypatch.setattr(ranks, "GENE_STEPS", 0)
    problem, g, cells, statistics = with_fixed(parts(state), "a")
    assert activity_last(problem, g, cells, statistics) == (g, cells, statistics)
    _, rest, _ = leading_factors(problem, g, cells, statistics, 1)
    np.testing.assert_array_equal(rest.mean, cells.mean[:, :2])


def test_nothing_is_to_be_ordered_where_there_are_no_factors(draw_state):
    problem, g, cells, statistics = parts(draw_state(6, 5, 0))
    assert activity_last(problem, g, cells, statistics) == (g, cells, statistics)
