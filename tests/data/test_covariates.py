"""Columns of obs as a design matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_lfm.data import code, learn_coding


@pytest.fixture
def obs():
    rng = np.random.default_rng(0)
    batch = pd.Categorical(rng.choice(["b", "a", "c"], 30), categories=["c", "a", "b", "unused"])
    frame = {"batch": batch, "pct": rng.normal(3, 2, 30), "n": rng.integers(0, 9, 30), "odd": rng.random(30) < 0.5}
    return pd.DataFrame(frame, index=[f"cell_{i}" for i in range(30)])


def test_codes_each_kind(obs):
    coding = learn_coding(obs, ["batch", "pct", "n", "odd"])
    assert coding["level"].tolist() == ["a", "b", "", "", "True"]
    assert coding["reference"].tolist() == ["c", "c", "", "", "False"]
    assert coding["kind"].tolist() == ["categorical"] * 2 + ["continuous"] * 2 + ["categorical"]
    design = code(obs, coding)
    raw = [obs["batch"] == "a", obs["batch"] == "b", obs["pct"], obs["n"], obs["odd"]]
    expected = np.column_stack(raw).astype(float)
    expected -= expected.mean(0)
    expected[:, 2:4] /= expected[:, 2:4].std(0)
    np.testing.assert_allclose(design, expected, atol=1e-12)


def test_a_slice_gets_what_it_had(obs):
    coding = learn_coding(obs, ["batch", "pct"])
    some = obs.iloc[3:5].copy()
    some["batch"] = some["batch"].astype(str)
    np.testing.assert_array_equal(code(some, coding), code(obs, coding)[3:5])


@pytest.mark.parametrize(
    ("columns", "change", "error", "words"),
    [
        (["bacth"], {}, KeyError, "Did you mean 'batch'"),
        ([], {}, ValueError, "names no column"),
        (3, {}, TypeError, "list of names"),
        (["pct", "pct"], {}, ValueError, "more than once"),
        (["pct"], {"pct": 1.5}, ValueError, r"obs\['pct'\] is the same in every cell"),
        (["batch"], {"batch": "a"}, ValueError, r"obs\['batch'\] is the same in every cell"),
        (["pct"], {"pct": [np.nan, *range(29)]}, ValueError, "first 'cell_0'"),
        (["pct"], {"pct": [0, np.inf, *range(28)]}, ValueError, "first 'cell_1'"),
        (["batch"], {"batch": [None] + ["a", "b"] * 14 + ["a"]}, ValueError, "first 'cell_0'"),
        (["batch"], {"batch": [f"cell {i}" for i in range(30)]}, ValueError, "too many for 30 cells"),
        (["pct"], {"pct": pd.date_range("2020", periods=30)}, TypeError, "neither numbers nor labels"),
    ],
)
def test_refuses(obs, columns, change, error, words):
    with pytest.raises(error, match=words):
        learn_coding(obs.assign(**change), columns)


def test_names_both_of_two_that_are_collinear(obs):
    obs["lab"] = obs["batch"].astype(str).str.upper()
    with pytest.raises(ValueError, match=r"obs\['lab'\] follows from obs\['batch'\]"):
        learn_coding(obs, ["pct", "batch", "lab"])
    obs["sum"] = obs["pct"] + obs["n"]
    with pytest.raises(ValueError, match=r"obs\['sum'\] follows from obs\['pct'\] and obs\['n'\]"):
        learn_coding(obs, ["pct", "n", "sum"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"batch": "d"}, ValueError, "holds 'd' in 30 cell"),
        ({"pct": "high"}, TypeError, "was continuous in the fit"),
        ({"batch": 1.0}, TypeError, "was categorical in the fit"),
    ],
)
def test_other_cells_must_have_what_the_fit_saw(obs, change, error, words):
    coding = learn_coding(obs, ["batch", "pct"])
    with pytest.raises(error, match=words):
        code(obs.assign(**change), coding)
    with pytest.raises(KeyError, match="no column 'pct'"):
        code(obs.drop(columns="pct"), coding)
