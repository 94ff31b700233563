"""What counts compute otherwise on a GPU, which must not be waited for: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.inference.counts.gene_step import far_out
from scvi_lfm.model.likelihoods import negative_binomial as NB
from scvi_lfm.model.likelihoods.ordinal import threshold_statistics


def test_levels_far_out_say_nothing_of_the_thresholds():
    generator = torch.Generator().manual_seed(0)
    eta = 2 * torch.randn(40, 30, generator=generator)
    y, observed = (
        torch.randint(0, 4, eta.shape, generator=generator).float(),
        torch.rand(eta.shape, generator=generator) < 0.3,
    )
    lowest, thresholds = torch.tensor(0.0), torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    far, half_variance = far_out(eta, torch.ones_like(eta), observed)
    assert torch.equal(half_variance, observed.float())
    found = threshold_statistics(y, far, lowest, thresholds)
    torch.testing.assert_close(
        found, threshold_statistics(y[observed], eta[observed], lowest, thresholds), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_counts_that_are_not_searched_for_say_the_same_of_dispersions(dtype):
    """Small and large ones, odd ones and zeros."""
    rng = np.random.default_rng(0)
    rate = torch.from_numpy(rng.gamma(1, 8, (60, 20))).to(dtype)
    y, phi = torch.from_numpy(rng.poisson(rate)).to(dtype), torch.from_numpy(rng.lognormal(-1, 1, 20)).to(dtype)
    y[0], rate[0] = 500, 0.01
    x = rate * phi
    assert (y >= NB.LOOKED_UP).any()
    assert (y == 0).any()
    beyond = NB._log_beyond(x)
    found = NB._of_counts_found(y, x, beyond, phi)
    # the same numbers, added up in another order
    assert torch.allclose(NB._of_counts_anywhere(y, x, beyond, phi), found, rtol=1e-12, atol=1e-12 * len(y))
    assert torch.isfinite(found).all()
    # the odd counts are at their bound
    bound = NB.MOST_SCORE * phi - beyond[0]
    only = NB._of_counts_anywhere(y[:1], x[:1], beyond[:1], phi)
    torch.testing.assert_close(only, bound.double())


def test_sums_over_molecules_are_those_of_digamma_functions():
    phi = torch.tensor([0.01, 0.3, 5.0], dtype=torch.float64)
    table = NB._sums_over_molecules(phi, 100)
    y = torch.arange(float(len(table)), dtype=torch.float64)[:, None]
    assert len(table) == NB.LOOKED_UP
    x = 0.7 * phi
    whole = NB._log_beyond(x) + table - phi * y * x / (1 + x)
    torch.testing.assert_close(NB._of_large(y, x, phi), whole, rtol=1e-9, atol=1e-12)
