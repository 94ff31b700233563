"""A column of obs or var that is there twice is named, whoever reads or writes it."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm


@pytest.fixture(scope="module")
def fitted_once():
    adata = lfm.datasets.simulate(40, 30, 2, likelihood="poisson", mu=1)
    adata.obs["batch"] = np.where(np.arange(40) % 2, "one", "two")
    adata.obs["chosen"] = np.arange(40) % 2 == 0
    adata.obs["depth"] = np.linspace(0.5, 1.5, 40)
    adata.var["some"] = np.arange(30) < 20
    lfm.tl.fit(adata, 2, progress=False)
    lfm.tl.rank_cells(adata, "gene_1")
    lfm.tl.anomalies(adata)
    return adata


def with_twice(adata, axis: str, name: str):
    """A copy in which a column is there twice."""
    twice, frame = adata.copy(), getattr(adata, axis)
    setattr(twice, axis, pd.concat([frame, frame[[name]]], axis=1))
    return twice


READ = {
    "covariates": ("obs", "batch", lambda adata: lfm.tl.fit(adata, 2, covariates=["batch"], progress=False)),
    "size_factors": ("obs", "depth", lambda adata: lfm.tl.fit(adata, 2, size_factors="depth", progress=False)),
    "size_factors of new cells": (
        *("obs", "depth"),
        lambda adata: lfm.tl.project(adata, adata, size_factors="depth", key_added="placed"),
    ),
    "mask_var": ("var", "some", lambda adata: lfm.tl.fit(adata, 2, mask_var="some", progress=False)),
    "groupby": ("obs", "batch", lambda adata: lfm.tl.rank_genes(adata, "batch")),
    "mask_obs": ("obs", "chosen", lambda adata: lfm.tl.rank_genes(adata, mask_obs="chosen")),
    "color": ("obs", "batch", lambda adata: lfm.pl.factors(adata, "batch", show=False)),
}
FIELDS = {
    "rank_genes": ("obs", "lfm_a", lambda adata: lfm.tl.rank_genes(adata, "batch")),
    "rank_cells": ("obs", "lfm_size_factor", lambda adata: lfm.tl.rank_cells(adata, "gene_1")),
    "predict": ("obs", "lfm_a_sd", lambda adata: lfm.tl.predict(adata, obs_names="cell_1", var_names="gene_1")),
    "similar_genes": ("var", "lfm_b", lambda adata: lfm.tl.similar_genes(adata, "gene_1")),
    "anomalies": ("var", "lfm_b_sd", lfm.tl.anomalies),
    "check": ("obs", "lfm_a", lfm.tl.check),
    "sample_posterior": ("var", "lfm_b", lambda adata: lfm.tl.sample_posterior(adata, 1)),
    "project": ("var", "lfm_theta", lambda adata: lfm.tl.project(adata.copy(), adata, key_added="placed")),
}
WRITTEN = {
    "rank_cells": ("obs", "rank_cells_lfm_sd", lambda adata: lfm.tl.rank_cells(adata, "gene_1")),
    "anomalies": ("var", "lfm_anomaly", lfm.tl.anomalies),
    "fit": ("var", "lfm_b", lambda adata: lfm.tl.fit(adata, 2, progress=False)),
    "hold_out": ("obs", "chosen", lambda adata: lfm.tl.hold_out(adata, by="rows", key_added="chosen")),
}


@pytest.mark.parametrize("name", READ)
def test_a_column_that_an_argument_names(fitted_once, name):
    axis, column, call = READ[name]
    message = f"`{name.split()[0]}`: {axis} has 2 columns called {column!r}. Rename or drop all but one."
    with pytest.raises(ValueError, match=re.escape(message)):
        call(with_twice(fitted_once, axis, column))


@pytest.mark.parametrize(("axis", "column", "call"), [*FIELDS.values(), *WRITTEN.values()], ids=[*FIELDS, *WRITTEN])
def test_a_field_that_is_read_or_written(fitted_once, axis, column, call):
    with pytest.raises(ValueError, match=re.escape(f"{axis} has 2 columns called {column!r}. Rename or drop all but")):
        call(with_twice(fitted_once, axis, column))


def test_columns_that_nobody_reads_are_no_matter(fitted_once):
    adata = with_twice(with_twice(fitted_once, "obs", "batch"), "var", "some")
    lfm.tl.rank_genes(adata, mask_obs="chosen")
    lfm.tl.anomalies(adata)
    lfm.tl.fit(adata, 2, progress=False)
