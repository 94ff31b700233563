"""Seeds, Pyro's store, warnings, plots, loggers and settings are after every public call as they were before it."""

# ruff: noqa: NPY002 - the global generator of numpy is what is looked at

from __future__ import annotations

import inspect
import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch

import scvi_lfm as lfm


def simple(value):
    """A value that can be compared; objects by their identity."""
    if isinstance(value, str | int | float | bool | tuple | list | dict | type(None)):
        return repr(value)
    return id(value)


def state() -> dict[str, object]:
    """All that a call might change outside its arguments."""
    numpy_state = np.random.get_state()
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("scvi_lfm", "scanpy", "pyro", "torch"))]
    parameters = pyro.get_param_store()
    return {
        "python random": random.getstate(),
        "numpy random": (numpy_state[0], numpy_state[1].tobytes(), *numpy_state[2:]),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "CUDA random": [seed.numpy().tobytes() for seed in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else None,
        "torch dtype": torch.get_default_dtype(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch gradients": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch device": str(torch.get_default_device()),
        "torch validation": torch.distributions.Distribution._validate_args,
        "pyro parameters": {name: value.detach().numpy().tobytes() for name, value in parameters.items()},
        "pyro settings": {name: simple(value) for name, value in pyro.settings.get().items()},
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "numpy errors": np.geterr(),
        "numpy printing": repr(np.get_printoptions()),
        "pandas options": {name: simple(pd.get_option(name)) for name in ("display.precision", "display.max_rows")},
        "warning filters": list(warnings.filters),
        "matplotlib settings": dict(mpl.rcParams),
        "matplotlib backend": mpl.get_backend(),
        "open figures": plt.get_fignums(),
        "scanpy settings": {
            name: simple(getattr(sc.settings, name))
            for name in ("verbosity", "autoshow", "autosave", "figdir", "n_jobs", "plot_suffix", "file_format_figs")
        },
        "loggers": [(logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in loggers],
        "our settings": {name: getattr(lfm.settings, name) for name in ("device", "progress", "verbosity")},
        # torch notes where its compiler keeps files when the first optimiser is made
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")},
        "directory": os.getcwd(),  # noqa: PTH109
    }


@pytest.fixture(autouse=True)
def something_to_lose():
    """Seeds that are not fresh, and a parameter in Pyro's store."""
    np.random.seed(123)
    random.seed(123)
    torch.manual_seed(123)
    np.random.random(3), random.random(), torch.rand(3)
    with pyro.get_param_store().scope():
        pyro.param("loc", torch.tensor([1.0, 2.0]))
        pyro.param("AutoNormal.locs.a", torch.tensor(3.0))
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def complete():
    """A fit with the results of every tool."""
    adata = lfm.datasets.simulate(40, 30, 2)
    adata.obs["type"] = np.where(adata.obs["a"] > 0, "active", "quiet")
    lfm.tl.fit(adata, 2, progress=False)
    lfm.tl.rank_genes(adata, "type")
    adata.X[3, 4] += 10
    lfm.tl.anomalies(adata)
    return adata


def fit_auto(adata):
    """A fit that chose its number of factors."""
    lfm.tl.fit(adata, "auto", progress=False)
    return adata


def fit_ratings(adata):
    """A fit of stored entries, some of them held out."""
    few = adata.copy()
    few.X = sp.csr_matrix(np.where(np.indices(few.shape).sum(0) % 2 == 0, few.X, 0))
    lfm.tl.hold_out(few, 0.1)
    lfm.tl.fit(few, 2, observed="stored", held_out="held_out", progress=False)
    return few


def read_ratings():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "u.data"
        path.write_text("1\t10\t3\t0\n1\t11\t4\t0\n2\t10\t5\t0\n")
        return lfm.datasets.movielens(path)


def explore(adata):
    with tempfile.TemporaryDirectory() as folder:
        lfm.pl.explorer(adata, Path(folder) / "page.html", basis="X_lfm", dimensions=(0, 1), color="type")


def slow_fit(adata, **options):
    """Few steps of the reference engine, which warns that it did not converge."""
    with pytest.warns(UserWarning, match="did not converge"):
        lfm.tl.fit(adata, 2, engine="pyro", max_epochs=3, progress=False, **options)


def as_counts(adata, likelihood):
    counts = adata.copy()
    counts.X = np.rint(np.exp(counts.X.clip(-2, 2))).clip(max=1 if likelihood == "bernoulli" else np.inf)
    return counts


def use_counts(adata, likelihood):
    """A fit of counts, and the tools that know them."""
    counts = as_counts(adata, likelihood)
    lfm.tl.fit(counts, 2, likelihood=likelihood, batch_size=20, max_epochs=3, tol=10.0, progress=False)
    lfm.tl.anomalies(counts)
    lfm.tl.rank_genes(counts, "type", key_added="ranked")
    lfm.tl.predict(counts, obs_names="cell_1", var_names="gene_1")
    lfm.tl.sample_posterior(counts, 2)
    lfm.tl.project(counts.copy(), counts, key_added="new")


CALLS = {
    "tl.fit": lambda adata: lfm.tl.fit(adata, 2, progress=False),
    "tl.fit, progress": lambda adata: lfm.tl.fit(adata, 2, progress=True),
    "tl.fit, minibatches": lambda adata: lfm.tl.fit(adata, 2, batch_size=10, rng=1, tol=1.0, progress=False),
    "tl.fit, noise of each gene": lambda adata: lfm.tl.fit(adata, 2, noise="gene", progress=False),
    "tl.fit, number of factors": fit_auto,
    "tl.fit, ratings": fit_ratings,
    "tl.hold_out": lambda adata: lfm.tl.hold_out(adata, 0.1),
    "tl.recommend": lambda adata: lfm.tl.recommend(fit_ratings(adata)),
    "tl.fit, pyro": slow_fit,
    "tl.fit, pyro, minibatches": lambda adata: slow_fit(adata, batch_size=10, guide="mean_field"),
    "tl.rank_genes": lambda adata: lfm.tl.rank_genes(adata, "type"),
    "tl.rank_cells": lambda adata: lfm.tl.rank_cells(adata, "gene_1"),
    "tl.similar_genes": lambda adata: lfm.tl.similar_genes(adata, "gene_1"),
    "tl.anomalies": lfm.tl.anomalies,
    "tl.fit, counts": lambda adata: use_counts(adata, "negative_binomial"),
    "tl.fit, poisson": lambda adata: use_counts(adata, "poisson"),
    "tl.fit, presence": lambda adata: use_counts(adata, "bernoulli"),
    "tl.check": lambda adata: lfm.tl.check(adata),
    "tl.predict": lambda adata: lfm.tl.predict(adata, layer_added="eta"),
    "tl.predict, pairs": lambda adata: lfm.tl.predict(adata, obs_names="cell_1", var_names="gene_1", pairs=True),
    "tl.project": lambda adata: lfm.tl.project(adata, adata, key_added="new"),
    "tl.sample_posterior": lambda adata: lfm.tl.sample_posterior(adata, 3),
    "get.rank_genes_df": lfm.get.rank_genes_df,
    "get.anomalies_df": lfm.get.anomalies_df,
    "get.factors_df": lfm.get.factors_df,
    "get.variance_df": lfm.get.variance_df,
    "get.elbo_df": lfm.get.elbo_df,
    "get.uncertainty_df": lfm.get.uncertainty_df,
    "get.rank_df": lambda adata: lfm.get.rank_df(fit_auto(adata)),
    "pl.rank": lambda adata: lfm.pl.rank(fit_auto(adata), show=False),
    "pl.anomalies": lambda adata: lfm.pl.anomalies(adata, show=False),
    "pl.calibration": lambda adata: lfm.pl.calibration(lfm.tl.check(adata, refit=False), show=False),
    "pl.elbo": lambda adata: lfm.pl.elbo(adata, show=False),
    "pl.explorer": explore,
    "pl.factors": lambda adata: lfm.pl.factors(adata, "type", show=False),
    "pl.loadings": lambda adata: lfm.pl.loadings(adata, show=False),
    "pl.rank_genes": lambda adata: lfm.pl.rank_genes(adata, show=False),
    "pl.uncertainty": lambda adata: lfm.pl.uncertainty(adata, show=False),
    "pl.variance": lambda adata: lfm.pl.variance(adata, show=False),
    "datasets.movielens": lambda _: read_ratings(),
    "datasets.simulate": lambda _: lfm.datasets.simulate(10, 8, 2),
    "datasets.pbmc_sorted": lambda _: lfm.datasets.pbmc_sorted(),
}


@pytest.mark.parametrize("name", CALLS)
def test_is_as_it_was(complete, name):
    adata = complete.copy()
    if name.startswith("pl."):
        plt.figure()
    before = state()
    CALLS[name](adata)
    after = state()
    if name.startswith("pl."):
        # a figure of its own is what a plot is for
        assert set(before.pop("open figures")) <= set(after.pop("open figures"))
    for what, value in before.items():
        assert after[what] == value, what


@pytest.mark.parametrize("options", [{}, {"engine": "pyro", "max_epochs": 3}], ids=["natural gradient", "pyro"])
def test_is_as_it_was_after_an_error(complete, monkeypatch, options):
    def broken(*args, **kwargs):
        torch.rand(3)
        raise KeyboardInterrupt

    from scvi_lfm.inference.normal import engine as normal_engine

    monkeypatch.setattr(normal_engine, "sweep", broken)
    monkeypatch.setattr("scvi_lfm.inference.pyro.loop.show_progress", broken)
    adata = complete.copy()
    before = state()
    with pytest.raises(KeyboardInterrupt):
        lfm.tl.fit(adata, 2, progress=False, **options)
    after = state()
    if not options:
        # the step that broke drew the numbers, not the package
        assert after.pop("torch random") != before.pop("torch random")
    for what, value in before.items():
        assert after[what] == value, what


FIRST_CALLS = """
import logging, warnings
import matplotlib as mpl
import scvi_lfm as lfm
lfm.tl, lfm.pl, lfm.get, lfm.datasets

def state():
    return list(warnings.filters), dict(mpl.rcParams), logging.getLogger().handlers[:], logging.getLogger().level

def call(name, function, *args, **options):
    before = state()
    result = function(*args, progress=False, **options) if name == "fit" else function(*args, **options)
    if state() != before:
        print(name, options)
    return result

adata = call("simulate", lfm.datasets.simulate, 40, 30, 2)
call("pbmc_sorted", lfm.datasets.pbmc_sorted)
call("fit", lfm.tl.fit, adata, 2)
call("fit", lfm.tl.fit, adata, 2, engine="pyro", max_epochs=2, key_added="other")
call("rank_genes", lfm.tl.rank_genes, adata, mask_obs=adata.obs["a"].to_numpy() > 0)
call("anomalies", lfm.tl.anomalies, adata)
call("pl", lfm.pl.rank_genes, adata, show=False)
call("pl", lfm.pl.anomalies, adata, show=False)
call("pl", lfm.pl.factors, adata, show=False)
"""


@pytest.mark.slow
def test_is_as_it_was_after_the_first_call_of_a_session():
    """Libraries that a call imports when it first needs them leave marks of their own."""
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"}
    run = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=True, env=quiet)
    assert run.stdout == ""


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial"])
def test_results_do_not_depend_on_it(complete, likelihood):
    """Neither seeds nor the default dtype of the session reach a fit."""
    results, data = [], complete if likelihood == "normal" else as_counts(complete, likelihood)
    for seed, dtype in ((1, torch.float32), (2, torch.float64)):
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            results.append(lfm.tl.fit(data, 2, batch_size=10, tol=1.0, progress=False, copy=True))
        finally:
            torch.set_default_dtype(before)
    np.testing.assert_array_equal(results[0].obsm["X_lfm"], results[1].obsm["X_lfm"])


def test_every_public_call_is_here():
    public = {f"{room}.{name}" for room in ("tl", "get", "pl", "datasets") for name in getattr(lfm, room).__all__}
    assert public == {name.split(",")[0] for name in CALLS}
    assert all(
        inspect.isfunction(getattr(getattr(lfm, room), name)) for room, name in (one.split(".") for one in public)
    )


def test_verbosity_speaks_through_the_packages_own_logger(complete, settings, caplog):
    root = list(logging.getLogger().handlers)
    settings.verbosity = 2
    with caplog.at_level(logging.INFO, logger="scvi_lfm"):
        lfm.tl.fit(complete, 2, progress=False, copy=True)
    assert any("likelihood 'normal', 40 cells x 30 genes, on " in message for message in caplog.messages)
    assert logging.getLogger().handlers == root
    settings.verbosity = 0
    settings.verbosity = 3
    assert sum(isinstance(handler, logging.StreamHandler) for handler in logging.getLogger("scvi_lfm").handlers) <= 2
