"""Fits to dask arrays on a cluster of processes: the values stay there, and results are those from memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.data.cluster import Cluster
from scvi_lfm.data.dask_chunks import DaskSource
from scvi_lfm.inference.minibatches import Stretch

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The fit did not converge:UserWarning"),
    # what distributed leaves to its end
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

N, M, PER_CHUNK = 1200, 40, 200
FITS = {
    "values": {"likelihood": "normal", "layer": "logs", "covariates": "batch"},
    "values held out": {"likelihood": "normal", "layer": "logs", "held_out": "test", "noise": "gene"},
    "values by minibatches": {"likelihood": "normal", "layer": "logs", "batch_size": 400},
    "noise by cell": {"likelihood": "normal", "layer": "logs", "noise": "cell_gene", "mask_var": "some"},
    "normalised": {"likelihood": "normal", "normalize": 1e4},
    "ratings": {"likelihood": "normal", "layer": "logs", "observed": "stored", "held_out": "test"},
    "ratings by minibatches": {"likelihood": "normal", "layer": "logs", "observed": "stored", "batch_size": 400},
    "counts": {"likelihood": "negative_binomial", "batch_size": 300},
    "counts by hundreds": {"likelihood": "negative_binomial", "batch_size": 100},
    "counts held out": {"likelihood": "poisson", "batch_size": 300, "held_out": "test", "covariates": "batch"},
    "counts stored": {"likelihood": "poisson", "batch_size": 300, "observed": "stored"},
}
# blocks end where tasks do, and sums of float32 round otherwise: at most 5e-6 over seeds and instruction sets
TOLERANCE = 2e-5


@cache
def made() -> ad.AnnData:
    adata = lfm.datasets.simulate(N, M, 2, likelihood="poisson", mu=0.5)
    rng = np.random.default_rng(4)
    x = sp.csr_matrix(adata.X, dtype=np.float32)
    adata = ad.AnnData(x, obs=adata.obs[[]], var=adata.var[[]])
    adata.layers["logs"] = x._with_data(np.log1p(x.data) + rng.normal(0, 0.1, x.nnz).astype(np.float32))
    adata.layers["test"] = sp.csr_matrix(rng.random(adata.shape) < 0.05)
    adata.obs["batch"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(N) % 3])
    adata.var["some"] = np.arange(M) % 4 != 1
    return adata


def in_chunks(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    adata.X = da.from_array(adata.X, chunks=(PER_CHUNK, -1), asarray=False)
    adata.layers["logs"] = da.from_array(adata.layers["logs"], chunks=(PER_CHUNK, -1), asarray=False)
    return adata


def fitted(adata: ad.AnnData, name: str) -> dict[str, np.ndarray]:
    """Everything that a fit writes, as arrays."""
    lfm.tl.fit(adata, 2, max_epochs=4, progress=False, **FITS[name])
    return written(adata)


def written(adata: ad.AnnData) -> dict[str, np.ndarray]:
    found = {f"obsm {key}": np.asarray(values) for key, values in adata.obsm.items()}
    found |= {f"varm {key}": np.asarray(values) for key, values in adata.varm.items()}
    found |= {f"obs {key}": adata.obs[key].to_numpy() for key in adata.obs if key.startswith("lfm")}
    found |= {f"var {key}": adata.var[key].to_numpy() for key in adata.var if key.startswith("lfm")}
    return found | {"elbo": np.asarray(adata.uns["lfm"]["elbo"]["value"])}


@cache
def with_fit(name: str) -> ad.AnnData:
    """Values in memory, with a fit; not to be written to."""
    adata = made().copy()
    fitted(adata, name)
    return adata


@contextmanager
def cluster_of(n_workers):
    with (
        distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client():
    with cluster_of(4) as client:
        yield client


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small data are worked on as large ones are: not read in, in many tasks of several blocks each."""
    monkeypatch.setattr("scvi_lfm.data.gate.MOST_BYTES_READ_IN", -1)
    monkeypatch.setattr("scvi_lfm.data.cluster.LEAST_CELLS", PER_CHUNK)
    monkeypatch.setattr("scvi_lfm.data.blocks.CELLS_PER_BLOCK", PER_CHUNK // 2)
    monkeypatch.setattr("scvi_lfm.inference.observed.engine.CELLS_PER_BLOCK", PER_CHUNK // 2)
    # of counts, one cell in four tells about dispersions
    monkeypatch.setattr("scvi_lfm.inference.counts.engine.DISPERSION_CELLS", N // 4)


@pytest.fixture
def no_chunks_here(monkeypatch):
    """No chunk comes to this process, and of single cells no more than a fit starts from."""

    def refuse(self, number):
        pytest.fail(f"chunk {number} was computed for this process")

    monkeypatch.setattr(DaskSource, "_compute", refuse)


def distance(found, expected):
    """Relative, of what is not missing in both."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    return np.linalg.norm(np.nan_to_num(found - expected)) / np.linalg.norm(np.nan_to_num(expected))


def in_memory(name):
    return fitted(made().copy(), name)


@pytest.mark.parametrize("name", FITS)
def test_fits_are_those_from_memory_and_chunks_stay_away(client, no_chunks_here, name):
    found, expected = fitted(in_chunks(made()), name), in_memory(name)
    assert found.keys() == expected.keys()
    errors = {key: distance(found[key], values) for key, values in expected.items()}
    assert max(errors.values()) < TOLERANCE, errors
    assert errors["elbo"] < 1e-6


def killing(client, monkeypatch, most, every):
    """Process ids of workers, killed at random soon after tasks of some calls in `every` were given to them."""
    rng, calls, killed, compute = np.random.default_rng(0), [], [], client.compute

    def compute_and_kill(tasks, **options):
        futures = compute(tasks, **options)
        calls.append(len(calls))
        if len(calls) % every == every // 2 and len(killed) < most:
            worker = rng.choice(sorted(client.cluster.workers))
            pid = client.cluster.workers[worker].pid
            if pid is not None:
                killed.append(pid)
                threading.Timer(0.02 * rng.random(), os.kill, (pid, signal.SIGKILL)).start()
        return futures

    monkeypatch.setattr(client, "compute", compute_and_kill)
    return killed


@pytest.mark.parametrize("name", ["values by minibatches", "counts"])
def test_bits_do_not_depend_on_the_number_of_workers_or_on_their_deaths(client, monkeypatch, name):
    """Workers are killed four times or five, while tasks of theirs are under way or hold what others need."""
    expected = fitted(in_chunks(made()), name)
    with cluster_of(2) as fewer:
        adata = in_chunks(made())
        # what a worker holds is lost with it
        adata.X, adata.layers["logs"] = fewer.persist([adata.X, adata.layers["logs"]])
        killed = killing(fewer, monkeypatch, 5, every=2)
        found = fitted(adata, name)
    assert len(killed) >= 4
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


def test_what_travels_is_small_beside_the_values(client, monkeypatch):
    """Of a fit that reads all cells ten times: less than they take once."""
    rng = np.random.default_rng(1)
    n, m = 4000, 500
    sent, values = [], rng.normal(size=(n, m)).astype(np.float32)
    loads = Cluster._unpacked
    monkeypatch.setattr(Cluster, "_unpacked", staticmethod(lambda found: sent.append(len(found)) or loads(found)))
    monkeypatch.setattr("scvi_lfm.data.cluster.LEAST_CELLS", 1000)
    monkeypatch.setattr("scvi_lfm.data.blocks.CELLS_PER_BLOCK", 500)
    adata = ad.AnnData(da.from_array(values, chunks=(500, -1)))
    lfm.tl.fit(adata, 2, max_epochs=5, batch_size=n, progress=False)
    assert len(sent) >= 10
    assert sum(sent) < values.nbytes


def dies(block, block_id=None):
    if block_id[0] == 3:
        os._exit(1)
    return block


def test_chunk_that_kills_its_workers_is_named(client):
    adata = in_chunks(made())
    adata.X = adata.X.map_blocks(dies, meta=adata.X._meta, dtype=adata.X.dtype)
    before = list(adata.obsm), list(adata.uns)
    with pytest.raises(RuntimeError, match=r"X at cells 600 to 799 .*4 workers died") as caught:
        lfm.tl.fit(adata, 2, likelihood="poisson", progress=False)
    assert "rechunk" in str(caught.value)
    assert (list(adata.obsm), list(adata.uns)) == before


def fails(block, block_id=None):
    if block_id[0] == 2:
        return np.empty(0).reshape(3, 5)
    return block


def test_chunk_that_cannot_be_computed_is_named(client):
    adata = in_chunks(made())
    adata.X = adata.X.map_blocks(fails, meta=adata.X._meta, dtype=adata.X.dtype)
    with pytest.raises(OSError, match="X could not be read at cells 400 to 599 .*reshape"):
        lfm.tl.fit(adata, 2, likelihood="poisson", progress=False)


def test_bad_values_are_named_as_from_memory(client):
    adata = made().copy()
    adata.X[431, 7] = -1
    with pytest.raises(ValueError, match="negative") as expected:
        lfm.tl.fit(adata.copy(), 2, likelihood="poisson", progress=False)
    with pytest.raises(ValueError, match="negative") as found:
        lfm.tl.fit(in_chunks(adata), 2, likelihood="poisson", progress=False)
    assert str(found.value) == str(expected.value)


def test_client_that_is_closed_is_named():
    with cluster_of(1) as client:
        adata = in_chunks(made())
        adata.X = adata.X.map_blocks(slow, meta=adata.X._meta, dtype=adata.X.dtype)
        threading.Timer(1.0, client.close).start()
        with pytest.raises(RuntimeError, match="client was closed"):
            lfm.tl.fit(adata, 2, likelihood="poisson", progress=False)


def slow(block):
    time.sleep(1)
    return block


def test_files_are_opened_by_the_workers(client, no_chunks_here, tmp_path):
    pytest.importorskip("xarray")
    made().write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.experimental.read_lazy(tmp_path / "cells.h5ad")
    adata.layers["logs"] = adata.layers["logs"].rechunk((PER_CHUNK, -1))
    lfm.tl.fit(adata, 2, layer="logs", likelihood="normal", max_epochs=4, progress=False)
    expected = made().copy()
    lfm.tl.fit(expected, 2, layer="logs", likelihood="normal", max_epochs=4, progress=False)
    found = np.asarray(adata.obsm["X_lfm"])
    assert np.linalg.norm(found - expected.obsm["X_lfm"]) < TOLERANCE * np.linalg.norm(found)


@pytest.fixture
def gathered(monkeypatch):
    """Numbers of cells whose values came to this process."""
    numbers, gather = [], Cluster.gather

    def noted(self, source, cells):
        numbers.append(len(np.arange(source.shape[0])[cells]))
        return gather(self, source, cells)

    monkeypatch.setattr(Cluster, "gather", noted)
    return numbers


def test_first_epoch_of_counts_brings_here_the_cells_to_start_from_alone(client, no_chunks_here, gathered, monkeypatch):
    monkeypatch.setattr("scvi_lfm.inference.counts.engine.START_CELLS", 300)
    monkeypatch.setattr("scvi_lfm.inference.minibatches.BYTES_TOGETHER", 2**16)  # several workers, one after the other
    found = fitted(in_chunks(made()), "counts by hundreds")
    assert gathered == [300]
    for key, values in in_memory("counts by hundreds").items():
        assert distance(found[key], values) < TOLERANCE, key


def test_fit_that_is_stopped_in_the_first_epoch_goes_on_to_the_same_bits(client, monkeypatch, tmp_path):
    monkeypatch.setattr("scvi_lfm.inference.minibatches.BYTES_TOGETHER", 2**14)
    monkeypatch.setitem(FITS, "kept", FITS["counts by hundreds"] | {"checkpoint": tmp_path / "kept"})
    expected, run, calls = fitted(in_chunks(made()), "counts by hundreds"), Stretch.run, []

    def stop(self, *told):
        calls.append(len(self.minibatches))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *told)

    monkeypatch.setattr(Stretch, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        fitted(in_chunks(made()), "kept")
    found = fitted(in_chunks(made()), "kept")
    assert sum(calls[:2]) + sum(calls[3:]) == N // 100
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


@pytest.mark.parametrize("observed", ["all", "stored"])
def test_held_out_entries_are_drawn_where_cells_lie(client, no_chunks_here, gathered, monkeypatch, observed):
    sent, loads = [], Cluster._unpacked
    monkeypatch.setattr(Cluster, "_unpacked", staticmethod(lambda found: sent.append(len(found)) or loads(found)))
    adata, expected = in_chunks(made()), made().copy()
    rngs = np.random.default_rng(7), np.random.default_rng(7)
    for one, rng in zip((adata, expected), rngs, strict=True):
        lfm.tl.hold_out(one, 0.02, layer="logs", observed=observed, rng=rng, key_added="some")
    assert (adata.layers["some"] != expected.layers["some"]).nnz == 0
    assert rngs[0].integers(2**60) == rngs[1].integers(2**60)
    assert gathered == []
    # figures of cells and genes, positions, and a few hundred bytes a task
    assert sum(sent) < made().X.data.nbytes


def test_entries_are_recommended_where_cells_lie(client, no_chunks_here, gathered):
    names = [made().obs_names[at] for at in (1100, 3, 640, 641)]
    for options in ({"obs_names": names}, {"order": "upper"}):
        expected = lfm.tl.recommend(with_fit("ratings").copy(), n_top=3, **options)
        found = lfm.tl.recommend(in_chunks(with_fit("ratings")), n_top=3, **options)
        pd.testing.assert_frame_equal(found, expected)
    assert gathered == []


@pytest.mark.parametrize("name", ["values", "ratings", "counts"])
def test_cells_are_projected_where_they_lie(client, no_chunks_here, name):
    reference = made().copy()
    fitted(reference, name)
    new, expected = in_chunks(made()), made().copy()
    lfm.tl.project(new, reference)
    lfm.tl.project(expected, reference)
    assert distance(np.asarray(new.obsm["X_lfm"]), expected.obsm["X_lfm"]) < TOLERANCE


def anomalies_of(adata, **options):
    """Everything that is found, as arrays; entries in the order of cells and genes."""
    lfm.tl.anomalies(adata, **options)
    found, entries = adata.uns["lfm_anomaly"], lfm.get.anomalies_df(adata)
    entries = entries.assign(cell=adata.obs_names.get_indexer(entries["cell"])).set_index(["cell", "gene"]).sort_index()
    arrays = {name: entries[name].to_numpy() for name in ("expected", "p", "q", "log_ratio", "lfdr")}
    arrays |= {"cells": adata.obs["lfm_anomaly"].to_numpy(), "genes": adata.var["lfm_anomaly"].to_numpy()}
    numbers = {name: found["params"][name] for name in ("n_by_tail", "n_by_ratio", "by")}
    return list(entries.index), numbers, arrays


ANOMALIES = [
    ("values", "auto"),
    ("values", "q"),
    ("noise by cell", "either"),
    ("normalised", "auto"),
    ("ratings", "either"),
    ("counts", "auto"),
    ("counts", "q"),
    ("counts held out", "auto"),
]


@cache
def odd(name: str) -> ad.AnnData:
    """A fit, to which odd values were put afterwards."""
    adata = with_fit(name).copy()
    adata.X.data[::200] += 9
    adata.layers["logs"].data[::200] += 3
    return adata


@pytest.mark.parametrize(("name", "by", "kept"), [*((*case, True) for case in ANOMALIES), ("counts", "auto", False)])
def test_anomalies_are_found_where_cells_lie(client, no_chunks_here, monkeypatch, name, by, kept):
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 70 * M)
    reference = odd(name)
    if not kept:  # covariances of cells, which are then made anew
        reference = reference.copy()
        del reference.obsm["lfm_cov"]
    # more pass than may be listed
    options = {"by": by, "max_entries": 40, "fdr": 0.5}
    expected, found = anomalies_of(reference.copy(), **options), anomalies_of(in_chunks(reference), **options)
    assert 3 < len(expected[0]) <= 40
    assert found[:2] == expected[:2]
    for what, values in expected[2].items():
        # sums of float32 over cells in another order
        np.testing.assert_allclose(found[2][what], values, rtol=1e-4, atol=1e-5, err_msg=what)


@pytest.mark.parametrize("name", ["values", "counts"])
def test_anomalies_have_the_same_bits_where_workers_die(client, monkeypatch, name):
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 70 * M)
    expected = anomalies_of(in_chunks(odd(name)), by="either")
    with cluster_of(2) as fewer:
        killed = killing(fewer, monkeypatch, 2, every=1)
        found = anomalies_of(in_chunks(odd(name)), by="either")
    assert len(killed) == 2
    assert found[:2] == expected[:2]
    for what, values in expected[2].items():
        np.testing.assert_array_equal(found[2][what], values, err_msg=what)


@pytest.mark.parametrize("name", ["values", "counts"])
def test_predicted_layers_are_computed_by_the_workers(client, no_chunks_here, name):
    adata, expected = in_chunks(with_fit(name)), with_fit(name).copy()
    before = set(client.futures)  # what the traceback of an error holds
    for one in (adata, expected):
        lfm.tl.predict(one, layer_added="expected")
    layer = adata.layers["expected"]
    assert layer.chunks[0] == (PER_CHUNK,) * (N // PER_CHUNK)
    assert set(client.futures) <= before
    np.testing.assert_allclose(layer.compute(), expected.layers["expected"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["values", "ratings", "counts"])
def test_cells_that_are_checked_come_here_and_no_chunks(client, no_chunks_here, name):
    expected = lfm.tl.check(with_fit(name).copy(), refit=False)
    found = lfm.tl.check(in_chunks(with_fit(name)), refit=False)
    pd.testing.assert_frame_equal(found.calibration, expected.calibration)
    np.testing.assert_array_equal(found.histogram, expected.histogram)
    assert found.leftover == pytest.approx(expected.leftover, rel=1e-6)


@pytest.mark.parametrize("name", ["values", "counts"])
def test_checks_refit_where_cells_lie_whatever_workers_die(client, no_chunks_here, monkeypatch, name):
    expected = lfm.tl.check(with_fit(name).copy())
    with cluster_of(2) as fewer:
        killed = killing(fewer, monkeypatch, 2, every=2)
        found = lfm.tl.check(in_chunks(with_fit(name)))
    assert len(killed) == 2
    columns = ["elbo", "gap", "eta_difference"]
    np.testing.assert_allclose(found.convergence[columns], expected.convergence[columns], rtol=1e-2, atol=1e-4)


def test_entries_that_travel_are_few_beside_the_values(client, monkeypatch):
    """Where every tenth entry of a block might be listed before the others are known."""
    rng = np.random.default_rng(1)
    n, m = 4000, 500
    monkeypatch.setattr("scvi_lfm.data.cluster.LEAST_CELLS", 1000)
    values = rng.normal(size=(n, m)).astype(np.float32)
    adata = ad.AnnData(da.from_array(values, chunks=(500, -1)))
    lfm.tl.fit(adata, 2, max_epochs=2, batch_size=n, progress=False)
    sent, loads = [], Cluster._unpacked
    monkeypatch.setattr(Cluster, "_unpacked", staticmethod(lambda found: sent.append(len(found)) or loads(found)))
    lfm.tl.anomalies(adata, by="q")
    assert len(sent) >= 3
    assert sum(sent) < values.nbytes / 10


def test_example_of_the_page_runs(tmp_path):
    page = (Path(lfm.__file__).parents[1] / "docs" / "dask.md").read_text()
    (tmp_path / "example.py").write_text(page.split("```python\n")[1].split("```")[0])
    run = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(2000, 4)"
