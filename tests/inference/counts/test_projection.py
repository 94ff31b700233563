"""Cells given finished genes: each at its own fixed point, whatever it starts from and whoever comes with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.counts import projection
from scvi_lfm.inference.counts.cell_step import cell_step
from scvi_lfm.inference.counts.projection import project_counts
from scvi_lfm.inference.counts.state import Cells
from scvi_lfm.inference.equations import NewtonStep
from scvi_lfm.linalg.covariances import Packed
from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.model.noise import CountNoise
from scvi_lfm.posterior import CountPosterior
from scvi_lfm.posterior.rates import GeneFeatures
from scvi_lfm.posterior.recomputed import Recomputed

N, M, R = 23, 40, 2


@pytest.fixture
def task(draw_state, general_prior):
    """Counts of some cells, and genes that are known up to their covariances, with a general prior of the cells."""

    def make(likelihood="negative_binomial", family="row_block"):
        state = draw_state(N, M, R, likelihood=likelihood, family=family)
        g = state.globals
        q = CountPosterior(
            mu=float(g.mu),
            cell_mean=torch.empty(0, R + 1, dtype=torch.float64),
            cell_cov=Packed(torch.empty(0, 6)),
            gene_mean=g.gene_mean,
            gene_cov=Packed(g.gene_cov.float()),
            noise=CountNoise(likelihood, g.dispersion, state.cells.log_size),
            cell_prior=general_prior(R + 1),
            gene_prior=general_prior(R + 1, seed=2),
        )
        return state, q

    return make


def project(state, q, rows=slice(None), **options):
    matrix = CellMatrix.of(state.y[rows].float().numpy())
    noise = replace(q.noise, log_size=q.noise.log_size[rows])
    return project_counts(matrix, replace(q, noise=noise), state.problem.family, **options)


def fixed_point(state, q):
    """Every cell's q in float64, iterated until nothing changes."""
    g, cells = state.globals, state.cells
    features = GeneFeatures.of(g.gene_mean, g.gene_cov)
    for _ in range(200):
        cells, missing = cell_step(state.problem, state.y, cells, features, g.mu, g.parameters, q.cell_prior)
    assert float(missing.max()) < 1e-15
    return cells


def distance(one, other, cov):
    """Largest distance of means in standard deviations."""
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    return float(np.abs((one - other).numpy() / sd).max())


@pytest.mark.parametrize("family", ["row_block", "mean_field"])
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.half_slow
def test_ends_at_the_fixed_point(task, dense, likelihood, family):
    state, q = task(likelihood, family)
    exact = fixed_point(state, q)
    found = project(state, q)
    cov = dense(exact.cov)
    # all of what is left to gain may lie in one latent
    most = (2 * projection.ENOUGH) ** 0.5
    assert distance(found.cell_mean, exact.mean, cov) < most
    # covariances are those at the means before that step, and weights follow rates, which follow means
    last = (2 * projection.ENOUGH / projection.LEFT) ** 0.5
    np.testing.assert_allclose(dense(found.cell_cov.values), cov, atol=last * np.abs(cov).max((1, 2)).min())
    assert found.gene_mean is q.gene_mean


def test_does_not_depend_on_the_start(task, dense):
    state, q = task()
    from_prior = project(state, q)
    cov = dense(from_prior.cell_cov.values)
    found = Cells(from_prior.cell_mean, from_prior.cell_cov.values, q.noise.log_size)
    far = replace(found, mean=torch.full((N, R + 1), 3.0).double())
    one_for_all = replace(found, cov=found.cov.mean(0, keepdim=True))
    for start in (found, far, one_for_all):
        assert distance(project(state, q, start=start).cell_mean, from_prior.cell_mean, cov) < 0.02


def test_cells_near_their_end_are_left_alone_after_two_steps(task, monkeypatch):
    """As those of a fit are, whose first step is for a fraction of the work."""
    state, q = task()
    exact = fixed_point(state, q)
    sd = exact.cov[:, torch.tensor([0, 2, 5])].sqrt()
    start = replace(
        exact, mean=exact.mean + 0.15 * sd * torch.from_numpy(np.random.default_rng(0).normal(size=(N, R + 1)))
    )
    visited, whole = [], projection.cell_step
    monkeypatch.setattr(
        projection, "cell_step", lambda problem, y, *a, **k: visited.append(len(y)) or whole(problem, y, *a, **k)
    )
    project(state, q, start=start)
    assert visited[:2] == [N, N]
    assert sum(visited[2:]) < N / 2


def test_a_cell_does_not_depend_on_its_company(task, dense, monkeypatch):
    state, q = task()
    whole = project(state, q)
    cov = dense(whole.cell_cov.values)
    some = torch.tensor([20, 3, 7])
    assert distance(project(state, q, some).cell_mean, whole.cell_mean[some], cov[some]) < 1e-3
    monkeypatch.setattr(projection, "CELLS_PER_BLOCK", 5)
    parts = project(state, q)
    assert distance(parts.cell_mean, whole.cell_mean, cov) < 1e-3
    torch.testing.assert_close(parts.cell_cov.values, whole.cell_cov.values, rtol=1e-3, atol=1e-5)


def test_covariances_that_are_not_kept_are_made_when_asked_for(task, dense, monkeypatch):
    state, q = task()
    whole = project(state, q)
    monkeypatch.setattr(lfm.settings, "_max_cov_bytes", 0)
    lean = project(state, q)
    assert isinstance(whole.cell_cov, Packed)
    assert isinstance(lean.cell_cov, Recomputed)
    assert torch.equal(lean.cell_mean, whole.cell_mean)
    cov = dense(whole.cell_cov.values)
    np.testing.assert_allclose(dense(lean.cell_cov.packed()), cov, atol=0.01 * np.abs(cov).max((1, 2)).min())


def test_cells_without_counts_or_depth(task):
    """Nothing seen at some depth says that rates are low; no depth says nothing."""
    state, q = task("poisson")
    y, log_size = state.y.clone(), q.noise.log_size.clone()
    y[:2], log_size[0] = 0, -60
    found = project(replace(state, y=y), replace(q, noise=replace(q.noise, log_size=log_size)))
    torch.testing.assert_close(found.cell_mean[0], q.cell_prior.mean, rtol=1e-4, atol=1e-4)
    assert found.cell_mean[1, 0] < q.cell_prior.mean[0] - 0.5
    assert found.cell_mean.isfinite().all()


def test_cells_of_extreme_depth_stay_finite(task):
    state, q = task("poisson")
    y = state.y.clone()
    y[0] = 2.0**24
    found = project(replace(state, y=y), q)
    assert found.cell_mean.isfinite().all()
    assert (found.cell_cov.diagonals() > 0).all()
    assert found.cell_mean[0, 0] > found.cell_mean[1:, 0].max()


def test_cells_that_newton_steps_close_in_on_slowly_take_fewer(task, monkeypatch):
    """A few large counts among zeros: Fisher scoring comes closer by a constant factor a step."""
    state, q = task()
    rng, visits = np.random.default_rng(0), []
    monkeypatch.setattr(
        projection, "cell_step", lambda *args, **given: visits.append(len(args[1])) or cell_step(*args, **given)
    )
    odd = [replace(state, y=30 * state.y * torch.from_numpy(rng.random((N, M)) < 0.1)) for _ in range(6)]
    for some in odd:
        project(some, q)
    mixed = sum(visits)
    visits.clear()
    monkeypatch.setattr(NewtonStep, "closer", lambda move, _: torch.zeros_like(move.missing, dtype=torch.bool))
    for some in odd:
        project(some, q)
    # of all 0.7 of the visits, of one matrix 0.56 to 0.86
    assert mixed < 0.85 * sum(visits)
