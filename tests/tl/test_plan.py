"""What `lfm.plan` says of a fit, against that fit."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import json
import re
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.data import opening
from scvi_lfm.data.counted import CellSample, Counted, Tally
from scvi_lfm.data.memory import MemorySource
from scvi_lfm.inference.demand import COUNTS, NORMAL, OBSERVED, PYRO, Size, demand
from scvi_lfm.tl._plan_making import CELLS, evenly

if TYPE_CHECKING:
    from collections.abc import Iterable

N, M = 90, 40
KINDS = {
    "values": {"likelihood": "normal"},
    "values in minibatches": {"likelihood": "normal", "batch_size": 32, "covariates": "batch"},
    "values of some genes": {"likelihood": "normal", "mask_var": "some", "noise": "cell_gene"},
    "counts": {},
    "counts in minibatches": {"batch_size": 32, "size_factors": "size"},
    "counts held out": {"likelihood": "poisson", "held_out": "test"},
    "counts normalised": {"normalize": 1e4, "held_out": "test"},
    "levels": {"likelihood": "ordinal", "observed": "stored"},
    "ratings": {"likelihood": "normal", "observed": "stored", "held_out": "test"},
    "few held out": {"likelihood": "normal", "held_out": "one"},
    "a number to choose": {"n_factors": "auto", "batch_size": 30},
    "Pyro": {"engine": "pyro", "likelihood": "normal"},
}
# one of each engine, and of what is read otherwise
QUICK = {"values of some genes", "counts in minibatches", "counts normalised", "levels", "few held out"}
QUIET = pytest.mark.filterwarnings("ignore::UserWarning")


def some_slow(kinds: Iterable[str]) -> list:
    return [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@cache
def made() -> ad.AnnData:
    """Counts with all that arguments ask for; not to be written to."""
    adata = lfm.datasets.simulate(N, M, 2, likelihood="poisson", mu=0.5)
    rng = np.random.default_rng(4)
    x = sp.csr_matrix(np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X).clip(max=9), dtype=np.float32)
    adata = ad.AnnData(x, obs=adata.obs[[]], var=adata.var[[]])
    adata.layers["test"] = sp.csr_matrix(rng.random(adata.shape) < 0.05)
    adata.layers["one"] = sp.csr_matrix(([True], ([N - 1], [3])), shape=adata.shape)
    adata.layers["logs"] = x._with_data(np.log1p(x.data))
    adata.obs["batch"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(N) % 3])
    adata.obs["size"] = rng.uniform(0.5, 2, N)
    adata.var["some"] = np.arange(M) % 4 != 1
    return adata


def options_of(kind: str) -> dict:
    options = {"n_factors": 2} | KINDS[kind]
    return options | ({"layer": "logs"} if options.get("likelihood") == "normal" else {})


def test_its_arguments_are_those_of_the_fit():
    of_fit, of_plan = (inspect.signature(function) for function in (lfm.tl.fit, lfm.plan))
    assert list(of_plan.parameters.values()) == list(of_fit.parameters.values())
    assert of_plan.return_annotation == "Plan"


def test_its_docstring_names_them_all_and_its_example_runs():
    text = inspect.getdoc(lfm.plan)
    parameters = text.split("----------\n")[1].split("\nReturns\n")[0]
    listed = re.findall(r"\w+", " ".join(re.findall(r"^\S.*$", parameters, flags=re.MULTILINE)))
    assert listed == list(inspect.signature(lfm.plan).parameters)
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(lfm.plan, "plan", globs={}):
        runner.run(example)
    assert runner.failures == 0
    attributes = inspect.getdoc(lfm.Plan).split("----------\n")[1]
    named = re.findall(r"\w+", " ".join(re.findall(r"^\S.*$", attributes, flags=re.MULTILINE)))
    assert named == [field.name for field in dataclasses.fields(lfm.Plan)]


@QUIET
@pytest.mark.parametrize("kind", some_slow(kind for kind in KINDS if kind not in {"Pyro", "a number to choose"}))
def test_it_is_what_the_fit_stores(kind):
    adata = made().copy()
    plan = lfm.plan(adata, **options_of(kind))
    lfm.tl.fit(adata, **options_of(kind), max_epochs=1, progress=False)
    params = adata.uns["lfm"]["params"]
    assert (plan.likelihood, plan.batch_size, plan.n_factors) == tuple(
        params[name] for name in ("likelihood", "batch_size", "n_factors")
    )
    assert plan.device == params["device"]
    kept = "lfm_cov" in adata.obsm
    assert (plan.keeps_covariances or False) == kept
    assert (plan.engine == "normal") == ("by_row" not in adata.uns["lfm"] and "lfm_cov" not in adata.varm)
    assert plan.n_genes == int(adata.var["lfm_b"].notna().sum())


def test_factors_to_choose_from_are_the_most_that_a_fit_tries():
    adata = made().copy()
    plan = lfm.plan(adata, "auto", batch_size=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lfm.tl.fit(adata, "auto", batch_size=30, progress=False, max_epochs=2)
    assert plan.n_factors == adata.uns["lfm"]["params"]["max_factors"]


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_nothing_is_touched_and_nothing_said(kind):
    adata, rng = made().copy(), np.random.default_rng(3)
    state = rng.bit_generator.state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = lfm.plan(adata, **options_of(kind), rng=rng)
    assert rng.bit_generator.state == state
    assert set(adata.obsm) == set(adata.varm) == set(adata.uns) == set()
    assert list(adata.obs) == ["batch", "size"]
    np.testing.assert_array_equal(adata.X.data, made().X.data)
    assert (plan.seconds is None) == (plan.engine == "pyro")
    assert plan.host_bytes == max(sum(plan.parts.values()), plan.host_bytes) > 0


WRONG = [
    {"n_factors": -1},
    {"n_factors": 41},
    {"n_factors": "many"},
    {"layer": "none"},
    {"layer": 3},
    {"normalize": -1.0},
    {"normalize": 1e4, "likelihood": "poisson"},
    {"likelihood": "gamma"},
    {"likelihood": "poisson", "layer": "logs"},
    {"likelihood": "student_t"},
    {"noise": "both"},
    {"noise": "gene", "likelihood": "poisson"},
    {"observed": "some"},
    {"held_out": "none"},
    {"held_out": np.ones((2, 2))},
    {"covariates": "none"},
    {"covariates": "batch", "noise": "cell_gene", "likelihood": "normal"},
    {"size_factors": "none"},
    {"size_factors": np.ones(3)},
    {"size_factors": -np.ones(N)},
    {"mask_var": "none"},
    {"mask_var": np.zeros(M, dtype=bool)},
    {"family": "full"},
    {"engine": "mcmc"},
    {"guide": "flow"},
    {"guide": "flow", "engine": "pyro", "likelihood": "normal", "layer": "logs"},
    {"learning_rate": 0.1},
    {"prior_scales": {"C": 1.0}},
    {"batch_size": 1},
    {"batch_size": 4, "n_factors": 8},
    {"max_epochs": 0},
    {"tol": 0},
    {"device": "tpu"},
    {"checkpoint": 3},
    {"rng": -1},
    {"key_added": ""},
    {"key_added": "a/b"},
]


@QUIET
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_the_fit_refuses_it_refuses_in_the_same_words(wrong):
    adata = made().copy()
    with pytest.raises((TypeError, ValueError, KeyError)) as of_fit:
        lfm.tl.fit(adata, **({"n_factors": 2, "progress": False} | wrong))
    with pytest.raises(of_fit.type) as of_plan:
        lfm.plan(adata, **({"n_factors": 2} | wrong))
    assert str(of_plan.value) == str(of_fit.value)


def test_an_argument_that_there_is_not_is_named():
    with pytest.raises(TypeError, match=r"plan\(\) has no argument 'n_comps'. Did you mean 'n_factors'"):
        lfm.plan(made(), n_comps=3)
    with pytest.raises(TypeError, match="must be an AnnData, found ndarray"):
        lfm.plan(np.ones((3, 3)))


@QUIET
@pytest.mark.parametrize("kind", ["values", "values in minibatches", "counts normalised", "ratings"])
def test_readings_are_those_of_the_fit(kind, monkeypatch):
    adata, tally, epochs = made().copy(), Tally(), 3
    plan = lfm.plan(adata, **options_of(kind))
    source_of = opening.open_source
    monkeypatch.setattr("scvi_lfm.data.gate.MOST_BYTES_READ_IN", -1)
    monkeypatch.setattr("scvi_lfm.data.gate.open_source", lambda *given: Counted(source_of(*given), tally))
    lfm.tl.fit(adata, **options_of(kind), max_epochs=epochs, tol=1e-12, progress=False)
    expected = dataclasses.replace(plan, epochs=epochs).n_readings
    # the first epoch leaves out the minibatch of the start
    assert abs(tally.n_cells / N - expected) <= 1 / plan.n_batches + 0.01


def test_a_file_is_read_in_where_it_takes_little(tmp_path, monkeypatch):
    made().write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    plan = lfm.plan(adata, 2)
    assert (plan.values, plan.read_in, plan.held_bytes) == ("file", True, 0)
    monkeypatch.setattr("scvi_lfm.data.gate.MOST_BYTES_READ_IN", -1)
    streamed = lfm.plan(adata, 2)
    assert (streamed.values, streamed.read_in) == ("file", False)
    assert streamed.n_stored == plan.n_stored == made().X.nnz
    assert lfm.plan(made(), 2).held_bytes == 8 * made().X.nnz


def test_dask_arrays_are_told_apart():
    dask = pytest.importorskip("dask.array")
    adata = ad.AnnData(dask.from_array(made().X, chunks=(30, M), asarray=False))
    plan = lfm.plan(adata, 2)
    assert (plan.values, plan.n_stored) == ("dask", made().X.nnz)


def test_many_cells_are_judged_by_some(monkeypatch):
    monkeypatch.setattr("scvi_lfm.tl._plan_making.CELLS", 40)
    adata = made().copy()
    plan = lfm.plan(adata, 2, held_out="one", size_factors=adata.obs["size"].to_numpy())
    assert (plan.n_judged, plan.n_cells) == (40, N)
    assert plan.engine == "counts"
    # the entry that is held out lies in none of the cells that were read, or one of them
    assert lfm.plan(adata, 2, held_out="one", layer="logs", likelihood="normal").engine == "observed"


def test_cells_are_taken_evenly():
    np.testing.assert_array_equal(evenly(7, 8), np.arange(7))
    for n, count in ((9, 8), (100, 8), (CELLS + 1, CELLS), (10**6, CELLS)):
        found = evenly(n, count)
        assert (np.diff(found) > 0).all()
        assert (found[0], found[-1]) == (0, n - 1)
        assert count / 2 <= len(found) <= count


@QUIET
@pytest.mark.parametrize("kind", ["values", "counts", "ratings"])
def test_a_fit_that_memory_cannot_hold_is_refused_before_it_begins(kind, monkeypatch):
    adata = made().copy()
    monkeypatch.setattr("scvi_lfm.tl._fit_memory.available_bytes", lambda: 5_000_000)
    with pytest.raises(
        MemoryError,
        match=r"not enough memory to fit the model: it takes about \d.* MB more, and 5.0 MB are left. .*Pass",
    ):
        lfm.tl.fit(adata, **options_of(kind), progress=False)
    assert not adata.uns
    plan = lfm.plan(adata, **options_of(kind))
    assert plan.fits == (plan.host_bytes <= plan.available_bytes)
    monkeypatch.setattr("scvi_lfm.tl._fit_memory.available_bytes", lambda: None)
    lfm.tl.fit(adata, **options_of(kind), max_epochs=1, progress=False)


def test_it_prints_as_a_table():
    plan = lfm.plan(made(), 2)
    lines = str(plan).splitlines()
    names = [line[: line.index("  ", 2)].rstrip() for line in lines]
    assert names[:7] == ["data", "values lie", "likelihood", "steps", "factors", "minibatches", "device"]
    assert {"readings", "memory", "time"} <= set(names)
    starts = {re.match(r"(  )?\S+( \S+)*  +", line).end() for line in lines}
    assert len(starts) == 1
    html = plan._repr_html_()
    assert html.count("<tr>") == len(lines)
    assert html.startswith("<table>")
    assert "cells&#x27; covariances" in html


def size(engine, **others):
    return Size(engine, **({"n_cells": 10_000, "n_genes": 2000, "n_factors": 10, "n_covariates": 0} | others))


@pytest.mark.parametrize("engine", [NORMAL, OBSERVED, COUNTS, PYRO])
def test_more_of_anything_takes_more(engine):
    usual = {"n_stored": 1e6, "batch_size": 1000}
    before = demand(size(engine, **usual)).n_bytes
    for name, more in (("n_cells", 50_000), ("n_genes", 50_000), ("n_factors", 30), ("batch_size", 10_000)):
        assert demand(size(engine, **(usual | {name: more}))).n_bytes > before
    on_gpu = demand(size(engine, **usual, on_gpu=True))
    assert on_gpu.n_bytes > 0
    assert on_gpu.n_device_bytes > 0


def test_covariances_of_cells_are_kept_up_to_the_bound():
    sizes = [size(COUNTS, n_stored=1e6, batch_size=512, max_cov_bytes=bound) for bound in (10_000 * 66 * 4, 0)]
    assert [each.keeps_cov for each in sizes] == [True, False]
    assert demand(sizes[1]).n_bytes < demand(sizes[0]).n_bytes


def test_values_that_are_read_in_are_held_twice_meanwhile():
    read_in = size(NORMAL, n_stored=3e7, batch_size=1000, in_memory=False, read_in=True)
    assert demand(read_in).n_bytes >= 2 * 8 * 3e7
    assert demand(dataclasses.replace(read_in, read_in=False)).n_bytes < 8 * 3e7


def test_a_sample_counts_what_is_read_of_it():
    values = sp.csr_array(np.arange(20.0).reshape(5, 4))
    sample = CellSample(np.array([1, 3]))
    source = sample.take(MemorySource(values))
    np.testing.assert_array_equal(source.whole().toarray(), values.toarray()[[1, 3]])
    source.at_genes(np.array([2])).rows(slice(0, 1))
    source.without(sp.csr_array(([1.0], ([0], [1])), shape=(2, 4))).rows(np.array([1]))
    assert sample.tally.n_cells == 4
    assert sample.seconds > 0


MEASURE = """
import json, sys
import numpy as np, scipy.sparse as sp, anndata as ad
import scvi_lfm as lfm, scvi_lfm.tl

kind, n, m, per = sys.argv[1], *map(int, sys.argv[2:5])
options = {"observed": {"observed": "stored"}, "counts": {}, "normal": {}}[kind]

def memory(name):
    # what getrusage tells begins with what the parent had
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

def data(n, m, per):
    rng = np.random.default_rng(0)
    x = np.empty(n * per, np.float32)
    genes = np.empty(n * per, np.int32)
    for i in range(n):
        part = slice(i * per, (i + 1) * per)
        genes[part] = (rng.integers(m) + np.arange(per) * (m // per)) % m
        genes[part].sort()
        x[part] = 1 + rng.poisson(1.0, per) if kind == "counts" else 1 + rng.random(per)
    return ad.AnnData(sp.csr_matrix((x, genes, np.arange(0, n * per + 1, per, dtype=np.int32)), shape=(n, m)))

small = data(100, 30, 10)
lfm.tl.fit(small, 2, max_epochs=1, progress=False, **options)
adata = data(n, m, per)
before = memory("VmRSS")  # held: what had been taken and given back counts as free
lfm.tl.fit(adata, 20, max_epochs=1, progress=False, **options)
grown = memory("VmHWM") - before
plan = lfm.plan(adata, 20, max_epochs=1, **options)
print(json.dumps([plan.engine, plan.host_bytes, grown]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n", "m", "per"),
    [("normal", 20_000, 20_000, 500), ("observed", 20_000, 4000, 50), ("counts", 8000, 4000, 200)],
)
def test_memory_is_near_what_a_fit_takes(kind, n, m, per):
    """Within what allocators make of it: settings of glibc's, with one or two threads, gave ratios of 0.88 to 1.86."""
    if not Path("/proc/self/status").exists():
        pytest.skip("how much memory a process had at its peak is read on Linux alone")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, kind, *map(str, (n, m, per))],
        capture_output=True,
        text=True,
        check=True,
    )
    engine, planned, measured = json.loads(run.stdout.splitlines()[-1])
    assert engine == kind
    assert 0.7 * measured < planned < 2.2 * measured
