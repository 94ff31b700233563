"""Numbers of batches are no quantity: `covariates` that look like them warn, and quantities do not."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from scvi_lfm.data import learn_coding, numbers_of_levels

N = 200
INDEX, RNG = np.arange(N), np.random.default_rng(0)
DONOR = INDEX % 8

CODES = {
    "from 0": INDEX % 3,
    "from 1": 1 + INDEX % 12,
    "1 and 2": 1 + INDEX % 2,
    "whole floats": (INDEX % 4).astype(float),
    "nullable": pd.array(INDEX % 5, dtype="Int64"),
    "small type": (INDEX % 6).astype(np.uint8),
    "with a gap": np.array([0, 2, 3, 5])[INDEX % 4],
    "a missing category": pd.Categorical(np.where(INDEX % 3, "a", None)).codes + INDEX % 2,
    "unsorted": np.array([3, 1, 2, 0])[RNG.integers(4, size=N)],
}
QUANTITIES = {
    "an indicator": INDEX % 2,
    "shares": RNG.random(N),
    "age of donors": np.array([23, 61, 45, 38, 70, 29, 52, 66])[DONOR],
    "age in a narrow cohort": np.array([60, 61, 62, 63, 64, 65, 67, 68])[DONOR],
    "age of cells in years": RNG.integers(18, 90, N),
    "weeks of mice": np.array([8, 12, 24])[INDEX % 3],
    "days of a time course": np.array([0, 3, 7, 14, 28])[INDEX % 5],
    "genes detected": RNG.integers(500, 3000, N),
    "molecules": RNG.poisson(3000, N),
    "half steps": (INDEX % 6) / 2,
    "logarithms": np.log1p(INDEX % 5),
    "below zero": INDEX % 5 - 2,
    "labels": np.array(["0", "1", "2"])[INDEX % 3],
    "categories": pd.Categorical(INDEX % 3),
}


@pytest.mark.parametrize("name", [*CODES, *QUANTITIES])
def test_which_columns_look_like_numbers_of_levels(name):
    obs = pd.DataFrame({"column": (CODES | QUANTITIES)[name]})
    assert numbers_of_levels(obs, learn_coding(obs, ["column"])) == (["column"] if name in CODES else [])


def test_more_than_a_few_are_a_quantity():
    obs = pd.DataFrame({"few": INDEX % 20, "many": INDEX % 21, "of each cell": INDEX})
    assert numbers_of_levels(obs, learn_coding(obs, ["few", "many"])) == ["few"]
    obs = pd.DataFrame({"own": [0, 1, 2, 3, 5, 4]})
    assert numbers_of_levels(obs, learn_coding(obs, ["own"])) == []


@pytest.mark.parametrize("kind", [int, float])
def test_a_fit_warns_and_names_the_call(kind):
    adata = lfm.datasets.simulate(60, 20, 2)
    adata.obs["batch"] = (np.arange(60) % 3).astype(kind)
    message = r"obs\['batch'\] holds 3 whole numbers \(0 to 2\).*adata\.obs\[\"batch\"\]\.astype\(\"category\"\) first"
    with pytest.warns(UserWarning, match=message) as caught:
        lfm.tl.fit(adata, 2, covariates=["batch"], progress=False)
    assert [warning.filename for warning in caught] == [__file__]
    assert adata.varm["lfm_beta"].shape == (20, 1)
    # as it was read from the warning
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lfm.tl.fit(adata, 2, covariates=["batch"], progress=False)
    assert adata.varm["lfm_beta"].shape == (20, 2)
