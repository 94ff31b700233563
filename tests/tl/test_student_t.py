"""`likelihood="student_t"` through the tools: what works, and what says that it does not."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
from scipy.stats import t as student

import scvi_lfm as lfm
from scvi_lfm._cli import main

FAST = {"engine": "pyro", "learning_rate": 0.1, "max_epochs": 120, "progress": False}


@pytest.fixture(scope="module")
def fitted():
    """Values with outliers, fitted. Copy before writing."""
    adata = lfm.datasets.simulate(80, 30, 2, factor_scales=[1.5, 1.0], sigma=0.7)
    adata.X = (adata.X + np.random.default_rng(0).standard_t(3, adata.shape)).astype(np.float32)
    adata.obs["group"] = np.where(adata.obsm["A"][:, 0] > 0, "high", "low")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The fit did not converge")
        lfm.tl.fit(adata, 2, likelihood="student_t", **FAST)
    return adata


def test_is_stored_and_read_back(fitted, tmp_path):
    assert 2.1 < fitted.uns["lfm"]["df"] < 100
    assert fitted.uns["lfm"]["params"]["likelihood"] == "student_t"
    assert len(np.unique(fitted.var["lfm_sigma"])) == 1
    fitted.write_h5ad(tmp_path / "fit.h5ad")
    names = {"obs_names": list(fitted.obs_names[:3]), "var_names": list(fitted.var_names[:4]), "quantiles": [0.9]}
    again = lfm.tl.predict(ad.read_h5ad(tmp_path / "fit.h5ad"), **names)
    np.testing.assert_array_equal(again.iloc[:, 2:], lfm.tl.predict(fitted, **names).iloc[:, 2:])


def test_predictions_have_its_tails(fitted):
    table = lfm.tl.predict(fitted, obs_names=list(fitted.obs_names), var_names="gene_3", quantiles=[0.5, 0.995])
    df, sigma = fitted.uns["lfm"]["df"], fitted.var["lfm_sigma"].to_numpy()[3]
    wanted = np.sqrt(table["sd"] ** 2 + student.var(df) * sigma**2)
    np.testing.assert_allclose(table["predictive_sd"], wanted, rtol=1e-5)
    np.testing.assert_allclose(table["q0.5"], table["expected"], atol=1e-5)
    wide = (table["q0.995"] - table["expected"]).to_numpy()
    assert (wide > student.ppf(0.995, df) * sigma).all()
    assert (wide < student.ppf(0.995, df) * sigma + 2.58 * table["sd"]).all()


def test_intervals_of_values_cover(fitted):
    cells, genes = np.indices(fitted.shape).reshape(2, -1)
    table = lfm.tl.predict(
        fitted, obs_names=list(fitted.obs_names[cells]), var_names=list(fitted.var_names[genes]), pairs=True
    )
    inside = (table["q0.05"] < fitted.X.ravel()) & (fitted.X.ravel() < table["q0.95"])
    assert 0.87 < inside.mean() < 0.95  # of values that were fitted


def test_serves_the_tools_that_look_at_eta_alone(fitted):
    adata = fitted.copy()
    lfm.tl.rank_genes(adata, "group")
    assert np.isfinite(lfm.get.rank_genes_df(adata, "high")["scores"]).all()
    assert len(lfm.tl.similar_genes(adata, "gene_0")) > 0
    assert np.isfinite(lfm.tl.sample_posterior(adata, 3)["A"]).all()
    lfm.pl.factors(adata)


@pytest.mark.parametrize("tool", ["anomalies", "check", "project"])
def test_other_tools_say_what_to_do_instead(fitted, tool):
    adata = fitted.copy()
    arguments = (adata, fitted) if tool == "project" else (adata,)
    options = {"key_added": "new"} if tool == "project" else {}
    with pytest.raises(ValueError, match=f"lfm.tl.{tool} has no closed form under likelihood='student_t'. For it, fit"):
        getattr(lfm.tl, tool)(*arguments, **options)
    assert set(adata.uns) == set(fitted.uns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "natural_gradient"}, r"'student_t' is fitted by engine='pyro', found engine='natural_gradient'"),
        ({"size_factors": np.ones(80)}, r"`size_factors` belong to count likelihoods.*likelihood='student_t'"),
        ({"guide": "flow"}, r"`guide` must be one of 'row_block', 'mean_field', found 'flow' with likelihood='stude"),
        ({"noise": "cell_gene"}, r"`noise`='cell_gene' belongs to engine='natural_gradient'"),
        ({"held_out": "mask"}, r"`held_out` belongs to engine='natural_gradient'"),
    ],
)
def test_options_that_it_does_not_have(fitted, options, message):
    adata = lfm.datasets.simulate(80, 30, 2)
    lfm.tl.hold_out(adata, 0.1, key_added="mask")
    options = {"engine": "pyro"} | options
    with pytest.raises(ValueError, match=message):
        lfm.tl.fit(adata, 2, likelihood="student_t", progress=False, **options)
    assert "lfm" not in adata.uns


def test_whole_numbers_are_warned_about():
    adata = lfm.datasets.simulate(30, 20, 1, likelihood="poisson", mu=2.0)
    with (
        pytest.warns(UserWarning, match="did not converge"),
        pytest.warns(UserWarning, match="likelihood='student_t' is made for log-normalised values"),
    ):
        lfm.tl.fit(adata, 1, likelihood="student_t", **(FAST | {"max_epochs": 1}))


@pytest.mark.slow
def test_from_the_command_line(fitted, tmp_path):
    fitted[:40].copy().write_h5ad(tmp_path / "data.h5ad")
    words = ["--likelihood", "student_t", "--engine", "pyro", "--n-factors", "1", "--max-epochs", "20"]
    assert main(["fit", str(tmp_path / "data.h5ad"), str(tmp_path / "fit.h5ad"), *words]) == 0
    assert ad.read_h5ad(tmp_path / "fit.h5ad").uns["lfm"]["df"] > 2
