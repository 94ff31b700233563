"""What counts compute otherwise on a GPU, which must not be waited for: the same numbers."""

from __future__ import annotations

import torch

from scvi_lfm.inference.counts.gene_step import far_out
from scvi_lfm.model.likelihoods.negative_binomial import LOOKED_UP, _of_large, _pairs, dispersion_score
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


def test_scores_of_all_counts_as_large_ones_are_those_of_the_table():
    """Sums over the molecules of a count, by digamma functions and one by one."""
    generator = torch.Generator().manual_seed(0)
    rate = 50 * torch.rand(30, 20, generator=generator)
    y, phi = torch.poisson(rate, generator=generator), 0.01 + torch.rand(20, generator=generator)
    damping = 1 / (1 + phi * rate)
    by_table = _pairs(y, phi, LOOKED_UP) - damping.log() + (damping - 1) * (1 + phi * y)
    by_formula = _of_large(y, rate, phi, slice(None))
    torch.testing.assert_close(by_formula.float(), by_table, rtol=1e-4, atol=1e-4)
    assert dispersion_score(y, rate, phi).isfinite().all()
