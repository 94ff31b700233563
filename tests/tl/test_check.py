"""`tl.check`: what it finds where the model is right, and where it was made wrong."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.posterior.calibration import BINS, SharedResiduals, coverage, kolmogorov_smirnov
from scvi_lfm.tl._check_words import how_it_ended, on_convergence

LIKELIHOODS = ("normal", "negative_binomial", "poisson", "bernoulli")


@pytest.fixture(scope="module")
def fits():
    found = {}
    for likelihood in LIKELIHOODS:
        mu = {} if likelihood == "normal" else {"mu": 0.0}
        found[likelihood] = lfm.datasets.simulate(300, 120, 3, likelihood=likelihood, rng=2, **mu)
        lfm.tl.fit(found[likelihood], 3, likelihood=likelihood, progress=False)
    return found


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_transforms_are_uniform_where_the_model_is_right(fits, likelihood):
    report = lfm.tl.check(fits[likelihood], refit=False)
    assert report.trusted
    overall = report.calibration.iloc[0]
    assert overall["n"] == 300 * 120
    # three standard errors of a share of 36,000 entries, and what is left of the fit's own pull
    assert abs(overall["coverage"] - 0.9) < 0.015
    assert overall["ks"] < 0.02
    assert report.leftover < 1.25
    np.testing.assert_allclose(report.histogram.sum(1)[0], 1)


@pytest.mark.parametrize(("factor", "side"), [(30, "low"), (1 / 30, "high")])
def test_a_wrong_theta_is_found_and_named(fits, factor, side):
    adata = fits["negative_binomial"].copy()
    adata.var["lfm_theta"] = adata.var["lfm_theta"] * factor
    report = lfm.tl.check(adata, refit=False)
    table = report.calibration
    wrong = table[(table["by"] == "expected") & (table["stratum"] == "1 to 10")].iloc[0]
    assert not report.trusted
    assert not wrong["ok"]
    assert (wrong["coverage"] < 0.9) == (side == "low")
    assert "cannot be trusted where" in str(report)
    assert "expected value 1 to 10" in str(report)


def test_a_wrong_sigma_is_found(fits):
    adata = fits["normal"].copy()
    adata.var["lfm_sigma"] = adata.var["lfm_sigma"] * 1.5
    # standard deviations of genes follow from it
    del adata.var["lfm_b_sd"], adata.varm["lfm_sd"]
    report = lfm.tl.check(adata, refit=False)
    assert not report.trusted
    # half as much again: 90 % intervals reach to 1.645 * 1.5 standard deviations
    assert report.calibration.iloc[0]["coverage"] == pytest.approx(0.986, abs=0.01)


def test_missing_factors_are_found_by_correlated_residuals():
    adata = lfm.datasets.simulate(300, 120, 3, likelihood="negative_binomial", mu=0.5, rng=3)
    lfm.tl.fit(adata, 1, prior_scales={"B": 1e-4}, progress=False)
    report = lfm.tl.check(adata, refit=False)
    assert report.leftover > 3
    assert not report.trusted
    assert "Structure is left over" in str(report)


def test_a_refit_is_compared(fits):
    adata = fits["normal"]
    before = {name: adata.uns["lfm"][name] for name in adata.uns["lfm"]}
    table = lfm.tl.check(adata).convergence
    assert list(table["fit"]) == ["this one", "other seed"]
    assert table["eta_difference"].iloc[0] == 0
    assert (table["eta_difference"] < 0.3).all()
    assert table["gap"].min() == 0
    assert adata.uns["lfm"].keys() == before.keys()


def compared(gap, difference):
    """A table of two fits, the checked one `gap` below the other."""
    return pd.DataFrame(
        {
            "fit": ["this one", "other seed"],
            "batch_size": [512, 256],
            "elbo": [-1.0 - gap, -1.0],
            "gap": [gap, 0.0],
            "eta_difference": [0.0, difference],
        }
    )


@pytest.mark.parametrize(
    ("gap", "difference", "ended", "said", "unsaid"),
    [
        (
            0.001,
            0.1,
            "tol",
            ["less than 0.50%", "at most 0.10% of that gain", "it has converged"],
            ["too hopeful", "pass"],
        ),
        (
            0.0177,
            0.1,
            "tol",
            ["smaller batches ends 1.77%", "too hopeful", "this figure counts", "use the fit as it is", "tol=0.001"],
            ["has converged"],
        ),
        (0.0177, 0.9, "tol", ["0.90 posterior", "far apart: pass tol=0.001"], ["as it is", "has converged"]),
        (0.03, 0.1, "max_epochs", ["larger max_epochs", "this figure counts"], ["too hopeful", "has converged"]),
        (0.001, 0.1, "held_out", ["held-out entries were predicted worse"], ["less than", "too hopeful"]),
    ],
)
def test_the_words_say_which_figure_counts_and_what_to_do(gap, difference, ended, said, unsaid):
    words = " ".join(on_convergence(compared(gap, difference), ended, 0.005))
    assert all(part in words for part in said)
    assert not any(part in words for part in unsaid)


def test_the_summary_tells_how_the_fit_ended(fits):
    adata = fits["normal"].copy()
    assert "by its own estimate" in str(lfm.tl.check(adata, refit=False))
    adata.uns["lfm"] = adata.uns["lfm"] | {"held_out": {"stopped": True}}
    assert how_it_ended(adata.uns["lfm"], "lfm") == "held_out"
    adata.uns["lfm"] = adata.uns["lfm"] | {"converged": False}
    assert "The fit stopped at max_epochs" in str(lfm.tl.check(adata, refit=False))


def test_same_seed_same_report_and_nothing_is_written(fits):
    adata = fits["poisson"].copy()
    stored = {*adata.uns, *adata.obs, *adata.var, *adata.obsm, *adata.varm}
    first, second = (lfm.tl.check(adata, refit=False, rng=5) for _ in range(2))
    assert first.calibration.equals(second.calibration)
    assert {*adata.uns, *adata.obs, *adata.var, *adata.obsm, *adata.varm} == stored


def test_coverage_and_distance_are_those_of_the_transforms():
    transforms = np.random.default_rng(0).beta(2, 1, size=5000)
    counts = torch.from_numpy(np.bincount((transforms * BINS).astype(int), minlength=BINS))
    assert coverage(counts) == pytest.approx(((transforms >= 0.05) & (transforms < 0.95)).mean())
    ordered = np.sort(transforms)
    distance = np.max(np.abs(np.arange(1, 5001) / 5000 - ordered))
    assert kolmogorov_smirnov(counts) == pytest.approx(distance, abs=2 / BINS)


def test_excess_is_the_largest_eigenvalue_of_the_correlations():
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(400, 30, generator=generator, dtype=torch.float64)
    score[:, :10] += torch.randn(400, 1, generator=generator, dtype=torch.float64)
    transforms = 0.5 * torch.erfc(-score / 2**0.5)
    shared = functools.reduce(SharedResiduals.plus, map(SharedResiduals.of, transforms.split(150)))
    largest = np.linalg.eigvalsh(np.corrcoef(score.numpy(), rowvar=False))[-1]
    assert shared.excess() == pytest.approx(largest / (1 + (30 / 400) ** 0.5) ** 2, rel=1e-6)


def test_wrong_arguments(fits):
    adata = fits["poisson"].copy()
    with pytest.raises(TypeError, match="`refit` must be True or False"):
        lfm.tl.check(adata, refit="yes")
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match="not whole numbers"):
        lfm.tl.check(adata, refit=False)
    with pytest.raises(KeyError, match="no 'other'"):
        lfm.tl.check(adata, key="other")
