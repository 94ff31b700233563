"""Steps on some genes write to copies of their own, and nothing is remembered of what they replace."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.counts.last_step import ENOUGH, settle
from scvi_lfm.linalg.packed import unpack


def clones(record):
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value.clone() for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_settling_leaves_the_genes_that_it_was_given(draw_state):
    state = draw_state(20, 9, 2)
    g, before = state.globals, clones(state.globals)
    open_ = torch.zeros(9, dtype=torch.float64)
    open_[[2, 5]] = 2 * ENOUGH
    after = settle(state.problem, g, state.cells, open_, CellMatrix.of(state.y.float().numpy()))
    for name, values in before.items():
        assert torch.equal(getattr(g, name), values)
    moved = (after.gene_mean != g.gene_mean).any(1)
    assert torch.nonzero(moved).flatten().tolist() == [2, 5]
    np.testing.assert_array_equal((after.gene_cov != g.gene_cov).any(1), moved)


def test_sums_over_genes_are_those_of_the_genes_as_they_are(draw_state):
    state = draw_state(8, 6, 2)
    g = state.globals.copied()
    former, index = g.total_cov.clone(), torch.tensor([1, 4])
    after = g.put(index, g.gene_mean[index] + 1, 3 * g.gene_cov[index], g.dispersion[index])
    expected = former + 2 * unpack(state.globals.gene_cov[index]).sum(0)
    torch.testing.assert_close(after.total_cov, expected, rtol=1e-9, atol=1e-11)
