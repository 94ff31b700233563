"""A count that no cell accounts for is not said to come from other cells."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import nbinom

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.anomaly_scan_counts import CountAnomalyScan
from scvi_lfm.posterior.gross_errors import DISPERSION, SHARE, or_gross_error


def test_is_a_mixture_above_expectation():
    y, rate = np.array([0, 1, 2, 9, 60.0]), np.array([3, 0.02, 2.5, 0.5, 0.01])
    own = nbinom(1 / 0.4, 1 / (1 + 0.4 * rate)).logpmf(y)
    variance = rate + DISPERSION * rate * np.maximum(rate, 1)
    gross = nbinom(rate**2 / (variance - rate), rate / variance).logpmf(y)
    expected = np.where(y > rate, np.log(np.exp(own) + SHARE * np.exp(gross)), own)
    given = [torch.from_numpy(part) for part in (own, y, rate)]
    for likelihood in ("negative_binomial", "poisson"):
        np.testing.assert_allclose(or_gross_error(likelihood, *given), expected, rtol=1e-9)
    assert torch.equal(or_gross_error("bernoulli", *given), given[0])


@pytest.fixture(scope="module")
def scores():
    """Two groups of cells: gene 0 marks the second, gene 1 varies a little. Both have 40 in a cell of the first."""
    rng = np.random.default_rng(0)
    rates = np.full((200, 60), 0.5)
    rates[:100, 2:20], rates[100:, 2:20] = 2.0, 0.2
    rates[100:, 0] = 20.0
    rates[:100, 0], rates[:100, 1], rates[100:, 1] = 0.05, 0.02, 0.06
    counts = rng.poisson(rates).astype(np.float32)
    counts[3, 0], counts[7, 1] = 40, 40
    adata = lfm.datasets.simulate(200, 60, 1, likelihood="poisson")
    adata.X = sp.csr_matrix(counts)
    lfm.tl.fit(adata, 1, likelihood="poisson", size_factors=np.ones(200), progress=False)
    scan = CountAnomalyScan(read_fit(adata, "lfm").posterior, "both", 0.1)
    return scan.score(torch.from_numpy(counts), slice(0, 200))


def test_a_marker_of_other_cells_is_told_from_what_no_cell_has(scores):
    marker, nowhere = scores.log_ratio[3, 0], scores.log_ratio[7, 1]
    assert marker > 5
    assert nowhere < marker / 2
    # both are improbable all the same
    assert (-scores.distance[3, 0]).exp() < 1e-4
    assert (-scores.distance[7, 1]).exp() < 1e-4
