"""`tl.check` where there are more cells than it looks at: some stand for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.predictive import BlockPredictor
from scvi_lfm.tl import _check_calibration
from scvi_lfm.tl._check_calibration import how_many_cells

FITS = [("normal", {}), ("normal", {"noise": "cell_gene"}), ("negative_binomial", {}), ("ordinal", {})]


def test_how_many_cells_are_looked_at():
    assert how_many_cells(1_200, 2_000) == (2**20 // 2_000, 1_200)
    assert how_many_cells(1_200, 800) == (1_200, 1_200)
    assert how_many_cells(50_000, 15_000) == (500, 4_096)
    # many genes: no fewer than 500, as long as there are so many
    assert how_many_cells(50_000, 500_000) == (500, 500)
    assert how_many_cells(100, 500_000) == (100, 100)


@pytest.mark.parametrize(("likelihood", "options"), FITS, ids=str)
def test_the_posterior_of_some_cells_is_theirs(fit_of, likelihood, options):
    q = read_fit(fit_of(likelihood, **options), "lfm").posterior
    rows = torch.tensor([3, 4, 11, 38])
    some, whole = BlockPredictor(q.at_cells(rows)).moments(q.at_cells(rows)), BlockPredictor(q).moments(q)
    laws = q.at_cells(rows).law_in_cells(some), q.law_in_cells(whole)
    # variances that all cells share are one row
    for one, other in ((some.mean, whole.mean), (some.var, whole.var), (laws[0].variance(), laws[1].variance())):
        torch.testing.assert_close(one.expand(4, 30), other.expand(40, 30)[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial"])
def test_a_sample_says_what_all_cells_say(monkeypatch, likelihood):
    """A right fit and a wrong one, judged by a third of the cells."""
    adata = lfm.datasets.simulate(600, 120, 3, likelihood=likelihood, rng=4, mu=0.5)
    lfm.tl.fit(adata, 3, likelihood=likelihood, progress=False)
    wrong = adata.copy()
    field = "lfm_sigma" if likelihood == "normal" else "lfm_theta"
    wrong.var[field] = wrong.var[field] * (1.5 if likelihood == "normal" else 30)
    if likelihood == "normal":
        del wrong.var["lfm_b_sd"], wrong.varm["lfm_sd"]
    whole = [lfm.tl.check(each, refit=False) for each in (adata, wrong)]
    monkeypatch.setattr(_check_calibration, "MOST_ENTRIES", 200 * 120)
    monkeypatch.setattr(_check_calibration, "LEAST_CELLS", 100)
    monkeypatch.setattr(_check_calibration, "MOST_CELLS", 300)
    some = [lfm.tl.check(each, refit=False) for each in (adata, wrong)]
    for of_all, of_some in zip(whole, some, strict=True):
        assert of_some.calibration["n"][0] == 200 * 120
        assert of_some.calibration["n"][of_some.calibration["by"] == "depth"].sum() == 200 * 120
        # five standard errors of a share of so many entries, were they alone
        share = of_all.calibration["coverage"][0]
        bound = 5 * np.sqrt(share * (1 - share) / (200 * 120)) + 0.002
        assert abs(of_some.calibration["coverage"][0] - share) < bound
        assert of_some.trusted == of_all.trusted
        assert (of_some.leftover > 1.5) == (of_all.leftover > 1.5)


def test_missing_factors_are_found_by_a_sample(monkeypatch):
    adata = lfm.datasets.simulate(600, 120, 3, likelihood="negative_binomial", mu=0.5, rng=3)
    lfm.tl.fit(adata, 1, prior_scales={"B": 1e-4}, progress=False)
    monkeypatch.setattr(_check_calibration, "MOST_CELLS", 200)
    report = lfm.tl.check(adata, refit=False)
    assert report.leftover > 3
    assert not report.trusted
