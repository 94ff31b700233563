"""Transforms counted by stratum, against a count one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.posterior.calibration import BINS, count_transforms
from scvi_lfm.posterior.tally import histogram, tally


@pytest.mark.parametrize("partly", [False, True])
def test_every_entry_is_counted_in_its_stratum(partly):
    rng = np.random.default_rng(0)
    transform = rng.random((30, 40)).astype(np.float32)
    transform[0, :3] = 0, 1, 0.5
    expected = rng.normal(size=(30, 40)).astype(np.float32)
    edges = np.array([-0.5, 0.25, 1], dtype=np.float32)
    expected[1, :3] = edges
    depth, observed = rng.integers(3, size=30), rng.random((30, 40)) < 0.7
    wanted = np.zeros((4, 4, BINS), dtype=int)
    for i, j in np.ndindex(30, 40):
        if observed[i, j] or not partly:
            # in float32, as transforms are
            place = min(int(transform[i, j] * np.float32(BINS)), BINS - 1)
            wanted[depth[i], np.searchsorted(edges, expected[i, j]), place] += 1
    found = count_transforms(
        *map(torch.from_numpy, (transform, expected, depth, edges)), 4, torch.from_numpy(observed) if partly else None
    )
    np.testing.assert_array_equal(found, wanted)


def test_histogram_equals_numpys():
    values = torch.linspace(-4, 4, 1000) + 1e-4
    inside = np.clip(values.numpy(), -3, 3)
    np.testing.assert_array_equal(histogram(values, 60, -3, 3), np.histogram(inside, 60, (-3, 3))[0])


def test_tally_has_a_place_for_what_is_not_there():
    assert tally(torch.tensor([[2.0, 0.0], [2.0, 2.0]]), 5).tolist() == [1, 0, 3, 0, 0]
