"""Chunks that the workers of a cluster work on: here threads of this process."""

from __future__ import annotations

import pickle
import threading
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data import CellMatrix, MemorySource, Scaled, cluster
from scvi_lfm.data.blocks import Blocks
from scvi_lfm.data.cluster import Cluster
from scvi_lfm.data.less_margins import LessMargins
from scvi_lfm.data.normalised import LogNormalised
from scvi_lfm.data.opening import source_of
from scvi_lfm.data.packing import outlined, pickled, unpickled

distributed = pytest.importorskip("distributed")
cloudpickle = pytest.importorskip("cloudpickle")
da = pytest.importorskip("dask.array")

N, M = 120, 9
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def client():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            yield client


@pytest.fixture(autouse=True)
def small_tasks(client, monkeypatch):
    monkeypatch.setattr("scvi_lfm.data.cluster.LEAST_CELLS", 20)
    monkeypatch.setattr("scvi_lfm.data.blocks.CELLS_PER_BLOCK", 7)


@pytest.fixture(params=["sparse", "dense"])
def values(request):
    rng = np.random.default_rng(0)
    y = np.where(rng.random((N, M)) < 0.4, rng.poisson(3, (N, M)), 0).astype(np.float32)
    return sp.csr_array(y) if request.param == "sparse" else y


def on_cluster(values):
    source = source_of(da.from_array(values, chunks=((13,) * 9 + (3,), M), asarray=False), "X")
    assert source.cluster is not None
    return source


def dense(block):
    return block if isinstance(block, np.ndarray) else block.toarray()


def total(parts, n_cells):
    sums, counts = zip(*parts, strict=True)
    assert sum(counts) == n_cells
    return sum(sums), n_cells


def forms(source):
    """The source, and what is made of it as it is read."""
    mask = sp.csr_array(np.arange(N * M).reshape(N, M) % 7 == 0)
    yield source
    yield source.at_genes(np.array([1, 4, 5]))
    yield source.without(mask)
    yield LogNormalised(source.without(mask), np.linspace(1, 2, N).astype(np.float32)).at_genes(np.arange(5))
    if source.is_sparse:
        yield LessMargins(source, 0.5, np.linspace(0, 1, N), np.linspace(0, 1, M))


@pytest.mark.slow
def test_what_is_asked_of_sources_is_that_from_memory(values):
    cells, genes = np.array([100, 3, 50, 3]), np.array([0, 1, 2, 0])
    for found, expected in zip(forms(on_cluster(values)), forms(MemorySource(values)), strict=True):
        np.testing.assert_array_equal(dense(found.rows(cells)), dense(expected.rows(cells)))
        np.testing.assert_array_equal(dense(found.whole()), dense(expected.whole()))
        np.testing.assert_array_equal(found.entries(cells, genes), expected.entries(cells, genes))
        for name, value in vars(expected.summary).items():
            np.testing.assert_array_equal(getattr(found.summary, name), value, err_msg=name)
        if expected.is_sparse:
            np.testing.assert_array_equal(found.pattern().toarray(), expected.pattern().toarray())


@pytest.mark.parametrize("cells", [None, np.arange(1, N, 3)])
@pytest.mark.parametrize("keep", [True, False])
def test_blocks_are_worked_on_in_order_with_their_parts(values, cells, keep):
    known = np.arange(N, dtype=float)[:, None]
    matrix = CellMatrix(on_cluster(values), covariates=known, level=0.5)
    blocks = Blocks.of_cells(matrix, cells, CPU, keep=keep)
    y = dense(values)[slice(None) if cells is None else cells] - np.float32(0.5)
    weights = torch.arange(len(y), dtype=torch.float64)[:, None]
    for _ in range(2):
        found = list(blocks.each(lambda batch, part: (batch.dense(), batch.known, part), blocks.split(weights)))
        assert max(len(part) for part, *_ in found) <= 7
        for column, expected in zip(zip(*found, strict=True), (y, blocks.known, weights), strict=True):
            np.testing.assert_array_equal(torch.cat(column), expected)
    pooled = list(blocks.each(lambda batch: (batch.dense().sum(), batch.n_cells), pool=total))
    assert len(pooled) == -(-(len(matrix.source.cluster.groups) - 1) // cluster.TASKS_TOGETHER)
    assert sum(n for _, n in pooled) == len(y)
    np.testing.assert_allclose(sum(found for found, _ in pooled), y.sum(), rtol=1e-5)
    np.testing.assert_array_equal(blocks.known, known[slice(None) if cells is None else cells])


def test_what_needs_no_values_reads_no_chunk(values, monkeypatch):
    blocks = Blocks.of_cells(CellMatrix(on_cluster(values)), None, CPU)
    monkeypatch.setattr(Cluster, "place", None)
    weights = torch.arange(N, dtype=torch.float64)
    found = list(blocks.each_without_values(lambda part: part + 1, blocks.split(weights)))
    assert len(found) == len(blocks.places)
    assert torch.equal(torch.cat(found), weights + 1)
    pooled = list(blocks.each_without_values(lambda part: (part.sum(), len(part)), blocks.split(weights), pool=total))
    assert sum(n for _, n in pooled) == N
    assert sum(found for found, _ in pooled) == weights.sum()


def test_tensors_of_a_function_travel_once(values, monkeypatch):
    """Parts that have them too say which they are."""
    genes, sent = torch.arange(100_000.0), []
    packs = cluster.pickled
    monkeypatch.setattr(cluster, "pickled", lambda what, *shared: sent.append(packs(what, *shared)) or sent[-1])
    blocks = Blocks.of_cells(CellMatrix(on_cluster(values)), None, CPU)
    parts = [{"genes": genes, "own": torch.tensor([float(k)])} for k in range(len(blocks.places))]
    found = list(blocks.each(lambda batch, part: part["own"] + part["genes"][7] - genes[6], parts))
    assert torch.cat(found).tolist() == [k + 1.0 for k in range(len(found))]
    assert sum(len(each) > 4 * len(genes) for each in sent) == 1


def test_tasks_have_whole_chunks_and_enough_cells(values):
    groups = on_cluster(values).cluster.groups
    np.testing.assert_array_equal(groups, [0, 26, 52, 78, 104, 120])


def test_numbers_stand_for_tensors_that_are_known():
    a, b = torch.ones(3), torch.zeros(2)
    outline, tensors = outlined({"a": a, "twice": [a, b], "none": None})
    assert [id(each) for each in tensors] == [id(a), id(b)]
    found = unpickled(outline, tensors)
    assert found["a"] is found["twice"][0] is a
    other = unpickled(pickled((b, a[:2]), tensors), tensors)
    assert other[0] is b
    assert torch.equal(other[1], torch.ones(2))


def test_what_a_worker_holds_can_go_to_another_while_it_is_at_work(values):
    """Nothing that is noted down meanwhile is sent along, nor is in the way."""

    class Counts:
        def __init__(self):
            self.noted = {}

        def __call__(self, matrix):
            self.noted["lock"] = threading.Lock()  # which nothing can send
            return matrix.summary.total + len(self.noted)

    function = cluster.hold_function(*((outline := outlined(Counts()))[0], pickled(outline[1])))
    matrix = CellMatrix(MemorySource(values))
    hollow = pickled(matrix.over(MemorySource(sp.csr_array(values.shape))))
    cells = cluster.hold_cells(hollow, pickled((lambda chunk, span: chunk, [slice(0, N)], [slice(0, N)])), values)
    for _ in range(2):
        total = pickle.loads(cluster.work(function, cells, pickled(())))
        assert total == pytest.approx(dense(values).sum() + 1)
        sent = cloudpickle.dumps(cells)
        assert len(sent) < len(cloudpickle.dumps(values)) + 5000
        function, cells = cloudpickle.loads(cloudpickle.dumps(function)), cloudpickle.loads(sent)
        assert function.what.noted == {}


def test_only_a_row_of_a_tensor_is_packed():
    large = torch.zeros(10_000, 100)
    row = pickle.loads(pickled(large[3]))
    assert len(pickled(large[3])) < 1000
    assert row.shape == (100,)
    assert pickle.loads(pickled(torch.tensor(2.0))).shape == ()
    weights = pickle.loads(pickled(Scaled(torch.ones(3, 2))))
    assert weights.values(torch.float32).shape == (3, 2)


def test_errors_of_functions_come_as_they_are(values):
    def fail(batch):
        raise KeyError("of ours")  # noqa: EM101

    with pytest.raises(KeyError, match="of ours"):
        list(Blocks.of_cells(CellMatrix(on_cluster(values)), None, CPU).each(fail))


@pytest.mark.slow
def test_chunk_that_fails_is_named_where_results_are_added_up(values):
    def fail(block, block_id=None):
        return block if block_id[0] != 4 else np.empty(0).reshape(3, 5)

    array = da.from_array(values, chunks=((13,) * 9 + (3,), M), asarray=False)
    source = source_of(array.map_blocks(fail, meta=array._meta, dtype=array.dtype), "X")
    blocks = Blocks.of_cells(CellMatrix(source), None, CPU)
    with pytest.raises(OSError, match="X could not be read at cells 52 to 77 .*reshape"):
        list(blocks.each(lambda batch: (batch.dense().sum(), batch.n_cells), pool=total))


@pytest.mark.slow
@pytest.mark.parametrize("pool", [None, total])
def test_what_tasks_are_told_of_their_cells_does_not_pile_up(values, client, monkeypatch, pool):
    monkeypatch.setattr("scvi_lfm.data.cluster.LEAST_CELLS", 10)
    monkeypatch.setattr("scvi_lfm.data.cluster.TASKS_TOGETHER", 2)
    monkeypatch.setattr("scvi_lfm.data.under_way.MOST_BYTES", 1)
    sizes, compute = [], client.compute
    monkeypatch.setattr(client, "compute", lambda tasks: sizes.append(len(tasks)) or compute(tasks))
    blocks = Blocks.of_cells(CellMatrix(on_cluster(values)), None, CPU)
    found = list(blocks.each(lambda batch: (batch.dense().sum(), batch.n_cells), pool=pool))
    assert sum(n for _, n in found) == N
    # two tasks for each of two threads, and one more whenever the first of them is over
    assert max(sizes) == sizes[0] <= 6
    assert len(sizes) > 2


def test_workers_compute_on_one_thread_and_have_theirs_back(client, values):
    threads = torch.get_num_threads()
    blocks = Blocks.of_cells(CellMatrix(on_cluster(values)), None, CPU)
    assert set(blocks.each(lambda batch: torch.get_num_threads())) == {1}
    assert set(client.run(torch.get_num_threads).values()) == {threads}


def test_without_a_client_there_is_no_cluster(values, monkeypatch):
    source = on_cluster(values)
    assert isinstance(source.cluster, Cluster)
    monkeypatch.setattr("distributed.default_client", _none)
    assert source.cluster is None


def _none():
    raise ValueError
