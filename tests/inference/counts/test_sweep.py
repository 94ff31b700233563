"""Visits of cells: the same bits whoever works on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm._workers import workers
from scvi_lfm.data.batch import Batch
from scvi_lfm.data.entries import Observed
from scvi_lfm.inference.counts.gene_step import Asked
from scvi_lfm.inference.counts.sweep import visit
from scvi_lfm.model.likelihoods import LIKELIHOODS
from scvi_lfm.posterior import rates


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of genes much smaller than the matrix, so that there is work for all."""
    monkeypatch.setattr(rates, "ENTRIES_PER_BLOCK", 1)


def single(record):
    """A record of tensors in float32, as in a fit."""
    changed = {
        name: value.float()
        for name, value in vars(record).items()
        if isinstance(value, torch.Tensor) and value.ndim and value.is_floating_point()
    }
    return replace(record, **changed)


def visited(state, y, observed, n_threads, steps=2, every=2):
    batch = Batch(y, torch.device("cpu"), observed)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with workers():
            asked = Asked.one_in(every, len(y))
            parts = visit(state.problem, state.globals, state.features, batch, state.cells, steps, asked)
    finally:
        torch.set_num_threads(before)
    return [value for part in parts for value in vars(part).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "bernoulli", "ordinal"])
@pytest.mark.parametrize("masked", [False, True])
def test_bits_are_the_same_for_any_number_of_threads(draw_state, likelihood, masked):
    rng = np.random.default_rng(0)
    state = draw_state(30, 3000, 2, likelihood="poisson" if likelihood == "ordinal" else likelihood)
    g = single(state.globals)
    state = replace(state, cells=single(state.cells), globals=g)
    if likelihood == "ordinal":
        levels = torch.tensor([0.0, -1.0, 0.5, 2.0], dtype=torch.float64)
        problem, g = replace(state.problem, likelihood=LIKELIHOODS[likelihood]), replace(g, levels=levels)
        state = replace(state, problem=problem, globals=g)
    y = state.y.float().clamp(max=3 if likelihood == "ordinal" else 1e6)
    if likelihood == "negative_binomial":
        y[3, :40] = 1000.0
    observed = None
    if masked:
        observed = Observed(sp.csr_array((rng.random(y.shape) < 0.3).astype(np.float32)), only=True)
    alone, two, four = (visited(state, y, observed, n_threads) for n_threads in (1, 2, 4))
    assert len(list(state.features.blocks(30))) == 12
    for one, other, another in zip(alone, two, four, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
        assert torch.equal(one, another)
