"""Blocks on their way to a GPU: read ahead, copied on a stream of their own, and used when they are there."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_lfm.data import CellMatrix, Observed, transfer
from scvi_lfm.data.blocks import Blocks
from scvi_lfm.data.transfer import Lane, sent_ahead, to_device
from scvi_lfm.inference.minibatches import Minibatches

CPU = torch.device("cpu")
WAIT = 60


class Sendable:
    """A block that writes down what happens to it."""

    def __init__(self, name: int, events: list) -> None:
        self.name, self._events = name, events

    def send(self) -> list:
        self._events.append(("sent", self.name))
        return [self]

    def record_stream(self, stream: str) -> None:
        """As a tensor's."""
        self._events.append(("kept for", stream, self.name))


class Streams:
    """Stands for `torch.cuda`: which stream is the current one, for each thread, and what is asked of streams."""

    def __init__(self, events: list) -> None:
        self._events, self._local = events, threading.local()

    def Stream(self, device: torch.device) -> Streams:
        return self

    @contextmanager
    def stream(self, stream: Streams):
        assert stream is self
        self._local.current = "copies"
        yield
        del self._local.current

    def current(self) -> str:
        return getattr(self._local, "current", "computing")

    def record_event(self) -> str:
        assert self.current() == "copies"
        self._events.append("copied")
        return "copied"

    def current_stream(self, device: torch.device) -> Streams:
        assert self.current() == "computing"
        return Computing(self._events)


class Computing(str):
    """The stream on which a GPU computes."""

    def __new__(cls, events: list) -> Computing:
        made = super().__new__(cls, "computing")
        made.events = events
        return made

    def wait_event(self, event: str) -> None:
        self.events.append(f"waits for {event}")


@pytest.fixture
def events(monkeypatch):
    """What a GPU is asked for, in order; none is needed."""
    found: list = []
    streams = Streams(found)
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(transfer, "lane_to", Lane)
    return found


def test_a_block_is_waited_for_on_the_device_and_its_memory_kept_for_what_is_computed(events):
    def read(number: int) -> Sendable:
        events.append(("read", number))
        return Sendable(number, events)

    (block,) = sent_ahead(read, [3], torch.device("cuda"))
    assert block.name == 3
    assert events == [("read", 3), ("sent", 3), "copied", "waits for copied", ("kept for", "computing", 3)]


def test_the_next_block_is_read_while_one_is_used(events):
    begun = {number: threading.Event() for number in range(3)}

    def read(number: int) -> Sendable:
        assert threading.current_thread() is not threading.main_thread()
        begun[number].set()
        return Sendable(number, events)

    blocks = sent_ahead(read, range(3), torch.device("cuda"))
    for number, block in enumerate(blocks):
        assert block.name == number
        if number < 2:
            assert begun[number + 1].wait(WAIT)
        if number == 0:
            assert not begun[2].is_set()


def test_an_error_of_a_reader_comes_where_its_block_would(events):
    def read(number: int) -> Sendable:
        if number == 1:
            msg = "cell 7"
            raise ValueError(msg)
        return Sendable(number, events)

    blocks = sent_ahead(read, range(3), torch.device("cuda"))
    assert next(blocks).name == 0
    with pytest.raises(ValueError, match="cell 7"):
        next(blocks)


def test_no_thread_is_left_where_blocks_are_not_asked_for_to_the_end(events):
    before = threading.active_count()
    blocks = sent_ahead(lambda number: Sendable(number, events), range(5), torch.device("cuda"))
    next(blocks)
    assert threading.active_count() > before
    blocks.close()
    assert threading.active_count() == before


def test_what_shares_the_memory_of_the_host_is_not_sent():
    values = np.arange(6.0).reshape(2, 3)
    assert to_device(values, CPU).data_ptr() == values.ctypes.data
    assert [block.name for block in sent_ahead(lambda number: Sendable(number, []), range(3), CPU)] == [0, 1, 2]


class FakeLane:
    """A lane that sends to nowhere, and says what it was given."""

    sent: list

    def __init__(self, device: torch.device) -> None: ...

    def send(self, block):
        made = block()
        self.sent.append(made.send())
        return lambda: made


@pytest.fixture
def sent(monkeypatch):
    monkeypatch.setattr(FakeLane, "sent", [], raising=False)
    monkeypatch.setattr(transfer, "lane_to", FakeLane)
    return FakeLane.sent


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    values = sp.random(40, 7, 0.4, format="csr", dtype=np.float32, rng=rng)
    observed = Observed(sp.csr_array(sp.random(40, 7, 0.1, format="csr", dtype=np.float32, rng=rng) != 0), only=False)
    return CellMatrix.of(sp.csr_array(values), observed, covariates=rng.normal(size=(40, 2)))


def rows_of(blocks):
    """All values of some blocks."""
    return np.concatenate([block.dense() for block in blocks])


def test_blocks_of_a_matrix_are_sent_with_all_that_steps_need(sent, matrix):
    parts = [slice(0, 13), slice(13, 40)]
    blocks = Blocks(matrix, parts, CPU)
    found = list(blocks._on_device())
    np.testing.assert_array_equal(rows_of(found), matrix.stored().toarray())
    assert len(sent) == 2
    for tensors, block in zip(sent, found, strict=True):
        held = {tensor.data_ptr() for tensor in tensors}
        for compressed in (block.by_cell, block._pattern_by_cell):
            for part in (compressed.crow_indices(), compressed.col_indices(), compressed.values()):
                assert part.data_ptr() in held
        assert block.known.data_ptr() in held


def test_what_is_kept_on_the_device_is_not_sent_again(sent, matrix):
    blocks = Blocks(matrix, [slice(0, 13), slice(13, 40)], CPU, keep=True)
    first, again = list(blocks._on_device()), list(blocks._on_device())
    assert len(sent) == 2
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_minibatches_come_in_the_same_order_with_and_without_a_lane(sent, matrix):
    def minibatches() -> Minibatches:
        return Minibatches(matrix, 9, CPU, torch.float32, np.random.default_rng(4))

    def seen(given: Minibatches) -> list[np.ndarray]:
        in_epoch = [rows_of(blocks._on_device()) for blocks in given.epoch(1, 1)]
        visited = [rows_of(blocks._on_device()) for _, blocks in given.visits()]
        numbered = [batch.dense().numpy() for rows, batch in given.numbered_epoch(2) if len(rows) == batch.n_cells]
        return [*in_epoch, *visited, *numbered]

    with_lane = seen(minibatches())
    assert len(sent) == len(with_lane) == 3 + 5 + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "lane_to", lambda device: None)
        without = seen(minibatches())
    for one, other in zip(with_lane, without, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
def test_a_gpu_gets_what_the_host_reads(matrix):
    device = torch.device("cuda")
    found = list(Blocks(matrix, [slice(0, 13), slice(13, 40)], device)._on_device())
    np.testing.assert_array_equal(np.concatenate([block.dense().cpu() for block in found]), matrix.stored().toarray())
