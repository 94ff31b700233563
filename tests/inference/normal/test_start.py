from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from as_blocks import as_blocks
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.sweep import sweep
from scvi_lfm.inference.state import Problem
from scvi_lfm.model.priors import rotation_is_free


def value(step, n_cells):
    return float(elbo(step.globals, step.statistics, step.cell_cov, n_cells))


@pytest.mark.parametrize("noise", ["shared", "gene"])
def test_the_start_without_factors_is_at_its_optimum(whole_batch, first_step, noise):
    batch = whole_batch(lfm.datasets.simulate(80, 50, 2, mu=4.0, cell_scale=1.0).X)
    problem = Problem(80, 50, "row_block", noise)
    start = step = first_step(problem, batch, 0)
    for _ in range(100):
        step = sweep(problem, step.globals, as_blocks(batch))
    assert value(step, 80) - value(start, 80) < 1e-6 * abs(value(start, 80))


def test_the_start_without_factors_holds_the_margins(whole_batch, first_step):
    batch = whole_batch(lfm.datasets.simulate(80, 50, 1, mu=4.0, cell_scale=1.0, factor_scales=[0.0], sigma=0.1).X)
    g = first_step(Problem(80, 50, "row_block", "shared"), batch, 0).globals
    # shrinkage of a gene's mean is sigma^2 / (n kappa_b^2), of the order 1e-4 here
    expected = batch.dense().mean(0)
    torch.testing.assert_close(g.mu + g.gene_mean[:, 0], expected + (g.mu + g.gene_mean[:, 0] - expected).mean(),
                               rtol=0, atol=2e-3)  # fmt: skip


def test_random_factors_turn_into_the_leading_ones(whole_batch, first_step):
    adata = lfm.datasets.simulate(200, 150, 3, cell_scale=0, gene_scale=0, mu=0)
    batch = whole_batch(adata.X)
    g = first_step(Problem(200, 150, "row_block", "shared"), batch, 3).globals
    leading = np.linalg.svd(adata.X - adata.X.mean(0), full_matrices=False)[2][:3]
    found = np.linalg.qr(g.gene_mean[:, 1:].numpy())[0]
    cosines = np.linalg.svd(leading @ found, compute_uv=False)
    assert cosines.min() > 0.99


@pytest.mark.parametrize(
    "given", [{"sigma": 1.3}, {"a": 0.2, "b": 0.7}, {"A": 0.5}, {"B": [0.9, 0.3]}, {"A": [2, 1]}, {"A": [2, 2]}]
)
def test_given_scales_are_kept(whole_batch, first_step, given):
    batch = whole_batch(lfm.datasets.simulate(30, 20, 2).X)
    g = first_step(Problem(30, 20, "row_block", "shared", rotation_is_free(given)), batch, 2, given).globals
    kept = {"a": g.scales.a, "b": g.scales.b, "A": g.scales.A, "B": g.scales.B, "sigma": g.precision.rsqrt()}
    for name, wanted in given.items():
        np.testing.assert_allclose(kept[name], np.broadcast_to(wanted, kept[name].shape), rtol=1e-12)


def test_seeds_start_from_different_factors(whole_batch, first_step):
    batch = whole_batch(lfm.datasets.simulate(30, 20, 2).X)
    problem = Problem(30, 20, "row_block", "shared")
    first, again, other = (first_step(problem, batch, 2, seed=seed).globals.gene_mean for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
