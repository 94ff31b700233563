from __future__ import annotations

import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch  # noqa: F401  # whose import adds filters of warnings, for which no plot is to blame

import scvi_lfm as lfm


@pytest.fixture(scope="session")
def fitted():
    """Simulated cells in three groups, with planted anomalies and everything that a plot reads."""
    adata = lfm.datasets.simulate(90, 40, 3, sigma=0.5)
    adata.obs["group"] = pd.Categorical(np.repeat(["A", "B", "C"], 30))
    adata.X[7, 3] += 5
    adata.X[40, 5] -= 5
    lfm.tl.fit(adata, 4, progress=False)
    # as if the number had been chosen
    numbers = np.arange(7)
    adata.uns["lfm"]["rank"] = {
        "n_factors": numbers,
        "elbo": -1.0 - 0.01 * (numbers - 4) ** 2,
        "effective": numbers * 0.9,
        "n_entries": adata.n_obs * adata.n_vars,
    }
    lfm.tl.rank_genes(adata, "group")
    lfm.tl.anomalies(adata, by="either")
    return adata


@pytest.fixture
def adata(fitted):
    return fitted.copy()


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(autouse=True)
def close_figures():
    """Close the figures of a test, and fail it if it changed anything global."""
    before = dict(mpl.rcParams), list(warnings.filters), sc.settings.autoshow
    yield
    plt.close("all")
    assert (dict(mpl.rcParams), list(warnings.filters), sc.settings.autoshow) == before
