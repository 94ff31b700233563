"""Coordinate ascent: every part of a sweep raises the ELBO, and where it ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from as_blocks import as_blocks
from scvi_lfm.inference.moves import improve_gauge
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.natural_gradient import (
    cell_statistics,
    update_genes,
    update_mu,
    update_noise,
)
from scvi_lfm.inference.normal.sweep import local_step, sweep
from scvi_lfm.inference.state import Problem
from scvi_lfm.model.priors import rotation_is_free

# what rounding of sums of about 1e3 nats may take away
ROUNDING = 1e-12

SCALES = {
    "learned": {},
    "a": {"a": 0.3},
    "A": {"A": 0.7},
    "A by factor": {"A": [0.5, 1.0, 2.0, 1.0]},
    "b": {"b": 0.8},
    "B": {"B": 0.5},
    "B by factor": {"B": [0.5, 0.4, 0.3, 0.2]},
    "sigma": {"sigma": 1.2},
    "all": {"a": 0.3, "A": 0.7, "b": 0.8, "B": 0.5, "sigma": 1.2},
}


@pytest.fixture(scope="module")
def batch(whole_batch):
    return whole_batch(lfm.datasets.simulate(24, 17, 3, mu=3.0, sigma=np.geomspace(0.5, 2, 17)).X)


def lowest_gain(values):
    return np.diff(values).min() / abs(values[-1])


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("noise", ["shared", "gene"])
@pytest.mark.parametrize("family", ["row_block", "mean_field"])
@pytest.mark.half_slow
def test_no_part_of_coordinate_ascent_lowers_the_elbo(batch, first_step, family, noise, scales):
    problem = Problem(24, 17, family, noise, rotates=False)
    step = first_step(problem, batch, 4, SCALES[scales])
    updates = (
        lambda g, statistics: update_genes(g, statistics, 24, family),
        lambda g, statistics: update_mu(g, statistics, 24),
        lambda g, statistics: update_noise(g, statistics, noise),
    )
    # the gauge moves of the start may have left the family
    g, values = update_genes(step.globals, step.statistics, 24, family), []
    for _ in range(6):
        block = local_step(problem, g)(batch)
        statistics = cell_statistics(batch, block.mean, block.cov)
        values.append(elbo(g, statistics, block.cov, 24))
        for update in updates:
            g = update(g, statistics)
            values.append(elbo(g, statistics, block.cov, 24))
    assert lowest_gain(torch.stack(values).numpy()) > -ROUNDING
    assert values[-1] > values[0] + 0.01


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("noise", ["shared", "gene"])
@pytest.mark.half_slow
def test_no_sweep_with_gauge_moves_lowers_the_elbo(batch, first_step, noise, scales):
    problem = Problem(24, 17, "row_block", noise, rotation_is_free(SCALES[scales]))
    step = first_step(problem, batch, 4, SCALES[scales])
    values = []
    for _ in range(20):
        step = sweep(problem, step.globals, as_blocks(batch))
        values.append(float(elbo(step.globals, step.statistics, step.cell_cov, 24)))
    assert lowest_gain(values) > -ROUNDING
    assert values[-1] > values[0] + 0.01


@pytest.mark.parametrize(("noise", "seed"), [("shared", 0), ("gene", 1)])
def test_row_block_ends_above_mean_field(whole_batch, first_step, noise, seed):
    batch = whole_batch(lfm.datasets.simulate(40, 25, 2, sigma=0.7, rng=seed).X)
    ends = {}
    for family in ("mean_field", "row_block"):
        problem = Problem(40, 25, family, noise)
        step = first_step(problem, batch, 2)
        for _ in range(60):
            step = sweep(problem, step.globals, as_blocks(batch))
        block = local_step(problem, step.globals)(batch)
        statistics = cell_statistics(batch, block.mean, block.cov)
        g = update_genes(step.globals, statistics, 40, family)
        ends[family] = float(elbo(g, statistics, block.cov, 40))
    assert ends["row_block"] > ends["mean_field"]


@pytest.mark.slow
def test_gauge_moves_leave_mean_field_close_to_its_own_optimum(whole_batch, first_step):
    """A move takes a mean-field q out of its family for a moment; it must not cost more than a thousandth."""
    batch = whole_batch(lfm.datasets.simulate(60, 40, 3).X)
    problem = Problem(60, 40, "mean_field", "shared")
    start = first_step(problem, batch, 3)
    ends = {}
    for moves in (True, False):
        g = start.globals
        for _ in range(150):
            block = local_step(problem, g)(batch)
            statistics = cell_statistics(batch, block.mean, block.cov)
            g = update_genes(g, statistics, 60, "mean_field")
            value = float(elbo(g, statistics, block.cov, 60))
            g = update_noise(update_mu(g, statistics, 60), statistics, "shared")
            g = g.with_scales_learned(statistics.xx[1, 1])
            if moves:
                g, _, _ = improve_gauge(g, statistics, block.cov, 60, rotates=True)
        ends[moves] = value
    without_factors = first_step(problem, batch, 0)
    rank0 = float(elbo(without_factors.globals, without_factors.statistics, without_factors.cell_cov, 60))
    assert ends[False] - ends[True] < 1e-3 * (ends[False] - rank0)


def test_a_step_of_rate_one_forgets_what_came_before(batch, first_step):
    problem = Problem(24, 17, "row_block", "shared")
    step = first_step(problem, batch, 2)
    fresh = sweep(problem, step.globals, as_blocks(batch))
    blended = sweep(problem, step.globals, as_blocks(batch), running=step.statistics.scaled(7.0), rate=1.0)
    for name in ("mu", "gene_mean", "precision"):
        assert torch.equal(getattr(fresh.globals, name), getattr(blended.globals, name))
    half = sweep(problem, step.globals, as_blocks(batch), running=step.statistics.scaled(7.0), rate=0.5)
    assert not torch.allclose(fresh.globals.gene_mean, half.globals.gene_mean)


def test_local_elbo_and_global_terms_make_up_the_elbo(batch, first_step):
    from scvi_lfm.inference.normal.elbo import kl_genes
    from scvi_lfm.model.priors import kl_of_mu

    problem = Problem(24, 17, "row_block", "gene")
    g = first_step(problem, batch, 2).globals
    block = local_step(problem, g)(batch)
    whole = elbo(g, cell_statistics(batch, block.mean, block.cov), block.cov, 24)
    assert float(24 * block.local_elbo - kl_genes(g) - kl_of_mu(g.mu, g.mu_var)) == pytest.approx(
        float(whole), rel=1e-12
    )
