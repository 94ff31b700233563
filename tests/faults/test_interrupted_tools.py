"""Ctrl-C, or an error, while a tool writes: the AnnData is as it was."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from lines_run import lines_run
from scvi_lfm.posterior.store.transaction import all_or_nothing

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

WRITING = all_or_nothing.__wrapped__.__code__


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    """Cells with fits of two kinds, and with results of all tools, which the next call replaces."""
    adata = lfm.datasets.simulate(30, 20, 2, likelihood="poisson", mu=1)
    adata.layers["counts"] = sp.csr_matrix(adata.X)
    adata.obs["type"] = pd.Categorical(np.where(np.arange(30) < 12, "one", "two"))
    adata.obsm["frame"] = pd.DataFrame({"x": np.arange(30.0)}, index=adata.obs_names)
    lfm.tl.fit(adata, 2, likelihood="poisson", max_epochs=2, tol=1e9, progress=False)
    for tool in TOOLS.values():
        tool(adata)
    lfm.tl.fit(adata, 1, likelihood="negative_binomial", max_epochs=2, tol=1e9, progress=False)
    return adata


TOOLS: dict[str, Callable[[ad.AnnData], object]] = {
    "rank_genes": lambda adata: lfm.tl.rank_genes(adata, "type"),
    "rank_cells": lambda adata: lfm.tl.rank_cells(adata, "gene_1"),
    "anomalies": lfm.tl.anomalies,
    "hold_out": lambda adata: lfm.tl.hold_out(adata, by="molecules"),
    "predict": lambda adata: lfm.tl.predict(adata, layer_added="predicted"),
    "project": lambda adata: lfm.tl.project(adata, adata.copy(), key_added="placed"),
    "fit": lambda adata: lfm.tl.fit(adata, 2, likelihood="normal", max_epochs=1, tol=1e9, progress=False),
}


def interrupt(call: Callable[[], object], line: int | None) -> int:
    """Raise KeyboardInterrupt at that line of Python since writing began; the number of lines that ran."""
    begun = False

    def counts(frame: FrameType, event: str) -> bool:
        nonlocal begun
        inside = frame.f_code is WRITING
        counted = begun and event == "line" and not inside
        # it hands over at its `yield`, and what comes then is to be whole or taken back
        if inside and event == "return":
            begun = not begun
        return counted

    return lines_run(call, counts, line)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_line(fitted: ad.AnnData, name: str) -> None:
    every_line(fitted, TOOLS[name], trials=60)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_some_lines(fitted: ad.AnnData) -> None:
    every_line(fitted, TOOLS["rank_cells"], trials=8)


def every_line(fitted: ad.AnnData, tool: Callable[[ad.AnnData], object], trials: int) -> None:
    whole = fitted.copy()
    total = interrupt(lambda: tool(whole), None)
    assert total > 3
    for line in sorted({round(line) for line in np.linspace(1, max(total - 10, 5), trials)}):
        adata = fitted.copy()
        with pytest.raises(KeyboardInterrupt):
            interrupt(lambda adata=adata: tool(adata), line)
        # whole in the last lines, where everything has been written
        if not is_equal(adata, whole):
            assert_equal(adata, fitted)


def test_an_error_between_two_fields() -> None:
    adata = ad.AnnData(np.ones((3, 2)), obs=pd.DataFrame({"kept": [1, 2, 3]}, index=list("abc")))
    adata.obsm["old"], adata.uns["old"] = np.ones((3, 1)), {"part": 1}
    before = adata.copy()

    def write() -> None:
        with all_or_nothing(adata):
            adata.obs["new"], adata.obs["kept"] = 0.0, "changed"
            del adata.obsm["old"]
            adata.uns["old"] = {}
            adata.varm["new"] = np.ones((5, 1))

    with pytest.raises(ValueError, match="shape"):
        write()
    assert_equal(adata, before)


def test_an_error_while_a_view_is_written() -> None:
    parent = ad.AnnData(np.ones((3, 2)), obs=pd.DataFrame({"kept": [1, 2, 3]}, index=list("abc")))
    view = parent[:2]
    before = view.copy()

    def write() -> None:
        with all_or_nothing(view):
            view.obs["new"] = 1
            view.uns["new"] = 1
            msg = "stop"
            raise RuntimeError(msg)

    with pytest.warns(ad.ImplicitModificationWarning, match="view"), pytest.raises(RuntimeError, match="stop"):
        write()
    assert_equal(view, before)
    assert "new" not in parent.obs


def test_names_that_are_no_strings_stay() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.AnnData(np.ones((3, 2)))
        adata.obs_names = pd.CategoricalIndex(["a", "b", "c"])
    with pytest.raises(KeyboardInterrupt), all_or_nothing(adata):
        raise KeyboardInterrupt
    assert isinstance(adata.obs_names, pd.CategoricalIndex)


def assert_equal(one: ad.AnnData, other: ad.AnnData) -> None:
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    for container in ("obsm", "varm", "layers", "uns"):
        equal_values(dict(getattr(one, container)), dict(getattr(other, container)))
    equal_values(one.X, other.X)


def is_equal(one: ad.AnnData, other: ad.AnnData) -> bool:
    try:
        assert_equal(one, other)
    except AssertionError:
        return False
    return True


def equal_values(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in set(one) - {"seconds"}:
            equal_values(one[name], other[name])
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif sp.issparse(one):
        assert (one != other).nnz == 0
    elif getattr(one, "dtype", None) is not None and one.dtype.names:  # NaN of a record is not equal to itself
        for name in one.dtype.names:
            equal_values(one[name], other[name])
    else:
        np.testing.assert_array_equal(one, other)
