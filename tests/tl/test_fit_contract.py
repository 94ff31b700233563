"""What holds of `tl.fit` whatever is fitted: numbers and counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from same_fit import same_fit

R = 2


@pytest.fixture(scope="module", params=["normal", "negative_binomial"])
def likelihood(request):
    return request.param


@pytest.fixture(scope="module")
def data(likelihood):
    """Shared: copy before writing into it."""
    if likelihood == "normal":
        return lfm.datasets.simulate(60, 40, R)
    return lfm.datasets.simulate(80, 40, R, likelihood=likelihood, mu=0.3, factor_scales=[0.8, 0.6], depth_spread=0.3)


def fit(adata, **options):
    return lfm.tl.fit(adata, R, **{"copy": True, "progress": False} | options)


@pytest.fixture(scope="module")
def plain(data):
    """The fit without any option. Shared: copy before writing into it."""
    return fit(data)


def test_params_reproduce_the_fit(data, likelihood):
    options = {"noise": "gene"} if likelihood == "normal" else {"likelihood": "poisson"}
    options |= {"family": "mean_field", "batch_size": 20, "max_epochs": 7, "tol": 0.5, "rng": 3}
    result = fit(data, prior_scales={"b": 0.5}, **options)
    params = result.uns["lfm"]["params"]
    assert {name: params[name] for name in options} == options
    assert params["prior_scales"] == {"b": 0.5}
    assert not {"layer", "mask_var", "guide", "learning_rate"} & set(params)
    assert same_fit(result, fit(data, **{name: params[name] for name in (*options, "prior_scales")}))


@pytest.mark.filterwarnings("ignore:The fit did not converge")
def test_same_seed_same_bits(data):
    options = {"batch_size": 20, "max_epochs": 1}
    first, again, other = (fit(data, rng=seed, **options) for seed in (4, 4, 5))
    assert same_fit(first, again)
    assert not same_fit(first, other)
    generators = [np.random.default_rng(7), np.random.default_rng(7)]
    first, again = (fit(data, rng=generator, **options) for generator in generators)
    assert same_fit(first, again)
    assert not same_fit(first, fit(data, rng=generators[0], **options))  # which has gone on
    assert "rng" not in first.uns["lfm"]["params"]


def test_a_layer_is_read_instead_of_x(data, plain, likelihood):
    adata = data.copy()
    adata.layers["values"] = data.X
    adata.X = data.X * 0.5
    result = fit(adata, layer="values")
    assert result.uns["lfm"]["params"]["layer"] == "values"
    assert result.uns["lfm"]["params"]["likelihood"] == likelihood
    assert same_fit(result, plain)


def test_copy_leaves_the_original_alone_and_no_call_alters_the_values(data, plain):
    before, in_place = data.to_df(), data.copy()
    assert fit(in_place, copy=False) is None
    assert "lfm" not in data.uns
    assert same_fit(in_place, plain)
    for adata in (data, in_place, plain):
        pd.testing.assert_frame_equal(adata.to_df(), before)
        assert type(adata.X) is type(data.X)
        assert getattr(adata.X, "nnz", None) == getattr(data.X, "nnz", None)


def test_a_view_becomes_actual_and_its_parent_stays_as_it_was(data):
    parent = data.copy()
    view = parent[10:50]
    with pytest.warns(ad.ImplicitModificationWarning):
        fit(view, copy=False)
    assert same_fit(view, fit(data[10:50].copy()))
    assert not any("lfm" in name for name in (*parent.obs, *parent.obsm, *parent.var, *parent.varm, *parent.uns))


def test_two_fits_live_side_by_side(plain):
    both = fit(plain, key_added="other", family="mean_field")
    assert same_fit(both, plain)
    assert both.uns["other"]["params"]["family"] == "mean_field"
    for frame in ("obs", "var", "obsm", "varm"):
        of_fit, of_other = (
            {name for name in getattr(both, frame) if key in name.split("_")} for key in ("lfm", "other")
        )
        assert {name.replace("other", "lfm") for name in of_other} == of_fit
    lfm.tl.rank_cells(both, "gene_0", key="other", key_added="by_other")
    np.testing.assert_allclose(both.obs["by_other"], both.obsm["X_other"] @ both.varm["other"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", ["array", "list", "series", "nullable", "column"])
@pytest.mark.half_slow
def test_mask_var_leaves_genes_out(data, given):
    adata = data.copy()
    mask = np.arange(data.n_vars) % 4 > 0
    adata.var["chosen"] = mask
    forms = {
        "array": mask,
        "list": mask.tolist(),
        "series": adata.var["chosen"],
        "nullable": pd.array(mask, dtype="boolean"),
        "column": "chosen",
    }
    result = fit(adata, mask_var=forms[given])
    fields = [values for name, values in (*result.var.items(), *result.varm.items()) if "lfm" in name.split("_")]
    assert len(fields) > 4
    for field in fields:
        finite = np.isfinite(np.asarray(field)).reshape(len(mask), -1)
        assert (finite == mask[:, None]).all()
    assert result.uns["lfm"]["params"]["mask_var"] == ("chosen" if given == "column" else "array")
    subset = fit(adata[:, mask].copy())
    np.testing.assert_array_equal(result.obsm["X_lfm"], subset.obsm["X_lfm"])
    lfm.tl.predict(result, layer_added="expected")
    assert (np.isfinite(result.layers["expected"]) == mask).all()


def test_says_when_it_did_not_converge(data, plain):
    with pytest.warns(UserWarning, match=r"did not converge to tol=1e-09 in 2 epoch\(s\)"):
        result = fit(data, tol=1e-9, max_epochs=2)
    assert not result.uns["lfm"]["converged"]
    assert plain.uns["lfm"]["converged"]


def test_progress_follows_the_argument_and_the_setting(data, capsys, monkeypatch):
    fit(data, progress=True)
    assert "fit" in capsys.readouterr().err
    fit(data)
    assert not capsys.readouterr().err
    monkeypatch.setattr(lfm.settings, "_progress", False)
    fit(data, progress=True)
    assert not capsys.readouterr().err
