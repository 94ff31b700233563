"""Blocks that workers take: no bit depends on how many workers there are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scvi_lfm._workers import workers
from scvi_lfm.data import Batch, CellMatrix
from scvi_lfm.inference.counts import objective, projection, start
from scvi_lfm.inference.counts.last_step import step_of_all
from scvi_lfm.inference.counts.objective import EntrySample, elbo_per_entry
from scvi_lfm.inference.counts.projection import project_counts
from scvi_lfm.inference.counts.start import fit_margins
from scvi_lfm.inference.equations import solve_rows
from scvi_lfm.inference.minibatches import Minibatches
from scvi_lfm.linalg import batch_inverse
from scvi_lfm.linalg.covariances import Packed
from scvi_lfm.model.noise import CountNoise
from scvi_lfm.posterior import CountPosterior

N, M, R = 70, 50, 3
CPU = torch.device("cpu")


@pytest.fixture
def small_blocks(monkeypatch):
    """So many blocks that workers are busy with several at a time."""
    monkeypatch.setattr(batch_inverse, "VALUES_PER_BLOCK", 1)
    monkeypatch.setattr(batch_inverse, "LEAST_ROWS", 8)
    monkeypatch.setattr(projection, "CELLS_PER_BLOCK", 8)
    monkeypatch.setattr(objective, "ENTRIES_PER_BLOCK", 100)
    monkeypatch.setattr(objective, "ROWS_PER_BLOCK", 8)
    monkeypatch.setattr("scvi_lfm.data.blocks.BLOCK_BYTES", 8 * M * 4)
    monkeypatch.setattr(start, "MARGIN_CELLS", N // 2)


def in_float32(part):
    """A record of the state with its tensors in the precision of a fit."""
    values = {name: value.float() for name, value in vars(part).items() if name not in {"mu", "scales", "levels"}}
    return replace(part, **values)


@pytest.fixture
def task(draw_state):
    state = draw_state(N, M, R)
    state = SimpleNamespace(**{name: getattr(state, name) for name in ("problem", "y", "cells", "globals")})
    state.y, state.cells, state.globals = state.y.float(), in_float32(state.cells), in_float32(state.globals)
    state.matrix = CellMatrix.of(state.y.numpy())
    return state


def rows(state):
    g = state.globals
    return vars(solve_rows(g.gene_cov, g.gene_mean, g.gene_prior, "row_block", 0.1 * g.gene_mean))


def bound(state):
    g, sample = state.globals, EntrySample.draw(state.matrix, CPU, np.random.default_rng(0))
    return {"elbo": elbo_per_entry(state.problem, g, state.cells, (g.cell_prior, g.gene_prior), sample, 0)}


def margins(state):
    parts = np.array_split(np.arange(N), 7)
    blocks = [partial(Batch, state.y[part], CPU) for part in parts]
    g, cells = fit_margins(state.problem, blocks, [state.cells.log_size[part] for part in parts], {})
    return {"dispersion": g.dispersion, "gene_mean": g.gene_mean, **vars(cells)}


def last(state):
    """From loadings that have far to go."""
    g = replace(state.globals, gene_mean=torch.zeros_like(state.globals.gene_mean))
    batches = Minibatches(state.matrix, N, CPU, torch.float32, np.random.default_rng(0))
    own = replace(state.cells, mean=state.cells.mean.clone(), cov=state.cells.cov.clone())  # written in place
    g, cells, _ = step_of_all(state.problem, g, own, batches)
    return {"gene_mean": g.gene_mean, "gene_cov": g.gene_cov, "dispersion": g.dispersion, "cells": cells.mean}


def placed(state):
    g = state.globals
    q = CountPosterior(
        mu=float(g.mu),
        cell_mean=torch.empty(0, R + 1, dtype=torch.float64),
        cell_cov=Packed(torch.empty(0, 10)),
        gene_mean=g.gene_mean.double(),
        gene_cov=Packed(g.gene_cov),
        noise=CountNoise("negative_binomial", g.dispersion, state.cells.log_size),
        cell_prior=g.cell_prior,
        gene_prior=g.gene_prior,
    )
    q = project_counts(state.matrix, q, "row_block")
    return {"mean": q.cell_mean, "cov": q.cell_cov.values}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("compute", [rows, bound, margins, last, placed])
def test_same_bits_for_any_number_of_workers(task, compute):
    before, found = torch.get_num_threads(), []
    for n in (1, 2, 4):
        torch.set_num_threads(n)
        try:
            with workers():
                found.append(compute(task))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(torch.as_tensor(other[name]), torch.as_tensor(value)), name
