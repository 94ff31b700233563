"""`tl.check`: what it finds where the model is right, and where it was made wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import scvi_lfm as lfm
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.calibration import BINS, SharedResiduals, Transform, coverage, kolmogorov_smirnov
from scvi_lfm.tl import _check

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


def test_refits_are_compared(fits):
    adata = fits["normal"]
    before = {name: adata.uns["lfm"][name] for name in adata.uns["lfm"]}
    table = lfm.tl.check(adata).convergence
    assert list(table["fit"]) == ["this one", "other seed", "half the batch"]
    assert table["eta_difference"].iloc[0] == 0
    assert (table["eta_difference"] < 0.3).all()
    assert table["gap"].min() == 0
    assert adata.uns["lfm"].keys() == before.keys()


def test_refits_take_other_seeds_and_smaller_batches(fits):
    adata = fits["negative_binomial"]
    table = lfm.tl.check(adata, rng=4).convergence
    assert table.columns.tolist() == ["fit", "seed", "batch_size", "elbo", "gap", "eta_difference"]
    assert table["batch_size"].tolist() == [300, 300, 150]
    assert table["seed"].iloc[0] == 0
    assert len(set(table["seed"])) == 2
    assert table["elbo"].iloc[0] == adata.uns["lfm"]["elbo"]["value"][-1]
    assert (table["eta_difference"] < 0.3).all()


def test_smaller_batches_hold_as_many_cells_as_there_are_factors():
    adata = lfm.datasets.simulate(41, 50, 3)
    lfm.tl.fit(adata, 15, progress=False)
    assert lfm.tl.check(adata).convergence["batch_size"].tolist() == [41, 41, 21]
    # two batches of 20 would not do
    lfm.tl.fit(adata, 25, progress=False)
    assert lfm.tl.check(adata).convergence["batch_size"].tolist() == [41, 41, 41]


def test_without_refits_there_is_nothing_to_compare(fits):
    report = lfm.tl.check(fits["poisson"], refit=False)
    assert report.convergence["fit"].tolist() == ["this one"]
    assert np.isnan(report.convergence["gap"]).all()
    assert "another seed" not in str(report)


def test_a_fit_that_ran_out_of_epochs_says_so():
    adata = lfm.datasets.simulate(80, 60, 3)
    with pytest.warns(UserWarning, match="did not converge"):
        lfm.tl.fit(adata, 3, max_epochs=1, tol=1e-6, progress=False)
    report = lfm.tl.check(adata)
    assert "stopped at max_epochs" in str(report)
    assert not report.trusted
    assert "end apart from each other" in str(report)
    assert "Pass a smaller tol or a larger max_epochs." in str(report)


def test_the_report_prints_what_it_says(fits, capsys):
    report = lfm.tl.check(fits["bernoulli"], refit=False)
    print(report)
    assert capsys.readouterr().out == f"{report.summary}\n"
    assert report.summary.startswith("90 % intervals hold ")
    assert "The predictive can be trusted (between " in report.summary
    assert report.summary.endswith("The fit stopped by its tolerance.")


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial", "bernoulli"])
def test_the_table_is_that_of_transforms_one_by_one(fits, likelihood, monkeypatch):
    adata = fits[likelihood]
    y = adata.X if likelihood == "normal" else adata.X.toarray()
    q = read_fit(adata, "lfm").posterior
    seed = int(np.random.default_rng(0).integers(2**31))
    transform = Transform(q, torch.Generator().manual_seed(seed))
    expected, pit = (part.double().numpy() for part in transform(torch.from_numpy(y), slice(0, 300)))
    report = lfm.tl.check(adata, refit=False)
    table = report.calibration
    assert table["by"].tolist() == ["all"] + 5 * ["expected"] + 4 * ["depth"]
    edges = np.quantile(expected, [0.2, 0.4, 0.6, 0.8]) if likelihood == "normal" else [0.01, 0.1, 1, 10]
    by_expected = np.digitize(expected, edges)
    depth = y.sum(1)
    by_depth = np.digitize(depth, np.quantile(depth, [0.25, 0.5, 0.75]), right=True)[:, None] + np.zeros(120)
    groups = [by_expected >= 0, *(by_expected == k for k in range(5)), *(by_depth == k for k in range(4))]
    for (_, row), group, histogram in zip(table.iterrows(), groups, report.histogram, strict=True):
        u = pit[group]
        assert row["n"] == pytest.approx(len(u), abs=2)
        if len(u) == 0:
            assert np.isnan([row["coverage"], row["ks"]]).all()
            assert row["ok"]
            continue
        assert row["coverage"] == pytest.approx(((u >= 0.05) & (u < 0.95)).mean(), abs=2e-3)
        assert row["ks"] == pytest.approx(kstest(u, "uniform").statistic, abs=3e-3)
        np.testing.assert_allclose(histogram, np.histogram(u, 20, (0, 1))[0] / len(u), atol=2e-3)
    monkeypatch.setattr(_check, "ENTRIES_PER_BLOCK", 120 * 70)
    blocks = lfm.tl.check(adata, refit=False).calibration
    np.testing.assert_allclose(blocks["n"], table["n"], atol=0 if likelihood != "normal" else 1500)
    assert blocks["coverage"].iloc[0] == pytest.approx(table["coverage"].iloc[0], abs=0.01)


def test_a_layer_and_some_genes(fits):
    adata = fits["negative_binomial"].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    lfm.tl.fit(adata, 3, layer="counts", mask_var=np.arange(120) < 90, progress=False)
    assert lfm.tl.check(adata, refit=False).calibration["n"].iloc[0] == 300 * 90
    adata.layers["more"] = 3 * adata.layers["counts"]
    with pytest.warns(UserWarning, match="layer='more' is not what the fit read"):
        report = lfm.tl.check(adata, layer="more", refit=False)
    assert not report.trusted


@pytest.mark.parametrize("factor", [1 / 1.5, 1.5])
def test_a_wrong_depth_is_found_and_named(fits, factor):
    adata = fits["poisson"].copy()
    few = np.asarray(adata.X.sum(1)).ravel() < np.quantile(np.asarray(adata.X.sum(1)).ravel(), 0.25)
    adata.obs.loc[few, "lfm_a"] += 2 * np.log(factor)
    report = lfm.tl.check(adata, refit=False)
    assert not report.trusted
    assert "depth quarter 1" in str(report)
    assert "depth quarter 4" not in str(report)


def test_same_seed_same_report_and_nothing_is_written(fits):
    adata = fits["poisson"].copy()
    stored = {*adata.uns, *adata.obs, *adata.var, *adata.obsm, *adata.varm}
    first, second = (lfm.tl.check(adata, refit=False, rng=5) for _ in range(2))
    assert first.calibration.equals(second.calibration)
    assert first.summary == second.summary
    assert not first.calibration.equals(lfm.tl.check(adata, refit=False, rng=6).calibration)
    assert first.calibration.equals(lfm.tl.check(adata, refit=False, rng=np.random.default_rng(5)).calibration)
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
    shared = SharedResiduals.empty(torch.arange(30.0))
    for block in (0.5 * torch.erfc(-score / 2**0.5)).split(150):
        shared.add(block)
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
    with pytest.raises(KeyError, match="layers"):
        lfm.tl.check(adata, layer="counts")
    with pytest.raises(TypeError, match="`rng` must be an int"):
        lfm.tl.check(adata, rng=None)
    with pytest.raises(ValueError, match="no cells"):
        lfm.tl.check(adata[:0].copy())
