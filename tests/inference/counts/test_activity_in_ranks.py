"""What dropped factors do to all genes alike goes to the activity of cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.inference.counts import ranks
from scvi_lfm.inference.counts.gene_step import cell_statistics
from scvi_lfm.inference.counts.ranks import activity_last, leading_factors
from scvi_lfm.inference.counts.state import Gauged

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


def gauged(state):
    statistics = cell_statistics(state.problem, state.globals, state.features, state.y, state.cells)
    return Gauged(state.globals, statistics, state.cells)


def expected(state):
    g, cells = state.globals, state.cells
    return g.mu + cells.mean[:, :1] + g.gene_mean[:, 0] + cells.mean[:, 1:] @ g.gene_mean[:, 1:].T


def test_the_factor_that_is_alike_in_all_genes_comes_last(state, entries):
    before = gauged(state)
    new = activity_last(state.problem, before)
    np.testing.assert_allclose(expected(new), expected(before), atol=1e-9)
    loadings, weight = new.globals.gene_mean[:, 1:].numpy(), entries(state)["weight"].mean(0)
    if state.problem.family == "row_block":
        around = loadings - weight @ loadings / weight.sum()
        # as uncertain as they are: sums over genes of second moments around the means fall from factor to factor
        covs = np.zeros((R, R))
        rows, columns = np.tril_indices(R + 1)
        for (i, j), total in zip(zip(rows, columns, strict=True), new.globals.gene_cov.sum(0).numpy(), strict=True):
            if i and j:
                covs[i - 1, j - 1] = covs[j - 1, i - 1] = total
        moment = around.T @ around + covs
        np.testing.assert_allclose(moment, np.diag(np.diag(moment)), atol=1e-9)
        assert (np.diff(np.diag(moment)) < 0).all()
        np.testing.assert_allclose(new.statistics.xx[2:, 2:], np.eye(R), atol=1e-9)
    assert np.abs(before.globals.gene_mean[:, 1:].numpy().mean(0)).argmax() == FIRST
    assert np.abs(loadings.mean(0) * np.sqrt(np.diag(new.statistics.xx)[2:])).argmax() == R - 1


def test_dropped_factors_leave_their_mean_loadings(state, entries, monkeypatch, dense):
    monkeypatch.setattr(ranks, "GENE_STEPS", 0)
    g, cells = state.globals, state.cells
    less = leading_factors(state.problem, gauged(state), 1)
    rest = less.cells
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
    assert float(less.statistics.xx[1, 1]) == pytest.approx(square, rel=1e-9)
    assert float(less.globals.scales.a) == pytest.approx(np.sqrt(square), rel=1e-9)


def test_no_other_choice_is_closer(state, entries, monkeypatch):
    """Among constants in place of dropped loadings, the mean by weight is the one of least squares."""
    monkeypatch.setattr(ranks, "GENE_STEPS", 0)
    whole = gauged(state)
    less = leading_factors(state.problem, whole, R - 1)
    weight, eta = entries(state)["weight"].mean(0), expected(whole)
    lost = ((eta - expected(less)).square() @ torch.from_numpy(weight)).sum()
    for change in (-0.1, 0.1):
        mean = less.cells.mean + change * torch.nn.functional.pad(state.cells.mean[:, -1:], (0, R - 1))
        assert (
            (eta - expected(replace(less, cells=replace(less.cells, mean=mean)))).square() @ torch.from_numpy(weight)
        ).sum() > lost


def test_an_activity_of_given_scale_takes_nothing(state, monkeypatch):
    monkeypatch.setattr(ranks, "GENE_STEPS", 0)
    g = state.globals
    fixed = gauged(replace(state, globals=replace(g, scales=replace(g.scales, fixed=frozenset("Aa")))))
    assert activity_last(state.problem, fixed) is fixed
    np.testing.assert_array_equal(leading_factors(state.problem, fixed, 1).cells.mean, state.cells.mean[:, :2])


def test_nothing_is_to_be_ordered_where_there_are_no_factors(draw_state):
    state = draw_state(6, 5, 0)
    whole = gauged(state)
    assert activity_last(state.problem, whole) is whole
