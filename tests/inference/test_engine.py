"""What every engine of natural gradients promises to the loop, over all rooms of closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from scvi_lfm.data import CellMatrix, Observed
from scvi_lfm.inference.loop import engine_for
from scvi_lfm.inference.progress import Progress
from scvi_lfm.inference.trace import Trace

N, M, R = 120, 60, 3
LOWEST, HIGHEST = 0, 4


@dataclass(frozen=True)
class Case:
    """A fit: its likelihood and options, and whether stored entries alone are data."""

    likelihood: str = "normal"
    stored: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def matrix(self):
        drawn = "poisson" if self.likelihood == "ordinal" else self.likelihood
        adata = lfm.datasets.simulate(N, M, R, likelihood=drawn, mu=0.7, factor_scales=[0.8] * R)
        values = sp.csr_array(adata.X).astype(np.float32)
        values = values.minimum(values.sign() * HIGHEST) if self.likelihood == "ordinal" else values
        if not self.stored:
            return CellMatrix.of(values)
        kept = values.multiply(np.random.default_rng(0).random(values.shape) < 0.6).tocsr()
        ones = sp.csr_array((np.ones(kept.nnz, np.float32), kept.indices, kept.indptr), shape=kept.shape)
        return CellMatrix.of(sp.csr_array(kept), Observed(ones, only=True))


# a new room of closed forms is tested by a line here
CASES = {
    "normal": Case(),
    "normal, noise of cells": Case(options={"noise": "cell_gene"}),
    "normal, stored": Case(stored=True),
    "counts": Case("negative_binomial"),
    "counts, stored": Case("poisson", stored=True),
    "levels": Case("ordinal", options={"levels": (LOWEST, HIGHEST)}),
}
BATCHES = {"one batch": N, "batches": 40}


# every case in every run, with either number of batches in turn
PAIRS = [
    pytest.param((case, size), id=f"{case} in {size}", marks=pytest.mark.slow if (i + j) % 2 else ())
    for i, case in enumerate(CASES)
    for j, size in enumerate(BATCHES)
]


@pytest.fixture(scope="module", params=PAIRS)
def started(request, fit_options):
    """An engine, its first state, and the states and bounds after some epochs."""
    name, size = request.param
    case = CASES[name]
    dtype = torch.float64 if case.likelihood == "normal" else torch.float32
    options = fit_options(
        likelihood=case.likelihood, n_factors=R, batch_size=BATCHES[size], dtype=dtype, **case.options
    )
    engine = engine_for(case.matrix(), options)
    state, rank0 = engine.start()
    states, bounds = [state], [rank0]
    for number in range(1, 7):
        state, estimates = engine.epoch(state, number, Progress())
        states.append(state)
        bounds.append(estimates[-1])
    return engine, states, bounds


def test_batches_are_as_many_as_were_asked_for(started):
    engine, _, _ = started
    assert engine.n_batches in {1, 3}


def test_epochs_raise_the_bound_above_that_without_factors(started):
    _, states, bounds = started
    assert all(map(math.isfinite, bounds))
    assert states[0].globals.n_factors == R
    # by several nats for each latent of a factor, so that no noise of an estimate can hide it
    assert bounds[-1] > bounds[0] + 0.01


def test_the_curve_of_ranks_ends_at_the_bound_of_the_state(started):
    engine, states, bounds = started
    curve = engine.ranks(states[-1])
    assert len(curve.elbo) == len(curve.effective) == R + 1
    # counts are measured in another rotation, and batches while the state moves on
    assert curve.elbo[-1] == pytest.approx(bounds[-1], abs=0.02)
    assert curve.elbo[0] < curve.elbo[-1]
    assert curve.effective == sorted(curve.effective)


@pytest.mark.parametrize("k", [0, 1, R])
def test_leading_factors(started, k):
    engine, states, _ = started
    fewer = engine.leading(states[-1], k)
    assert fewer.globals.n_factors == k
    after, estimates = engine.epoch(fewer, 7, Progress())
    assert after.globals.n_factors == k
    assert all(map(math.isfinite, estimates))


def test_the_result_is_in_the_stored_gauge(started):
    engine, states, bounds = started
    result = engine.finish(states[-1], Trace([(6.0, bounds[-1])], bounds[0], converged=True))
    q = result.posterior
    assert result.elbo[0] == (6.0, bounds[-1])
    # the last step is one of all cells, and may gain what the epochs have left
    assert result.elbo[-1][1] > bounds[-1] - 0.02
    assert q.cell_mean.shape == (N, R + 1)
    assert q.gene_mean.shape == (M, R + 1)
    # the cells follow the stored genes once more, which moves their mean a little
    assert (q.cell_mean.mean(0).abs() < 0.1 * q.cell_mean.std(0)).all()
    gram = q.gene_factors.T @ q.gene_factors
    torch.testing.assert_close(gram, torch.eye(R, dtype=torch.float64), rtol=0, atol=1e-5)
    lengths = q.cell_factors.square().sum(0)
    assert (lengths.diff() < 0).all()
    assert len(result.variance_ratio) == R


def test_nothing_is_held_out(started):
    engine, states, _ = started
    assert engine.held_out(states[-1]) is None
