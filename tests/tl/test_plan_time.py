"""Seconds of a plan are those of work: other programs add none, and a device that is waited for does."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm.data import MemorySource, counted
from scvi_lfm.data.counted import CellSample

WAIT = 0.05


class Slow(MemorySource):
    """A source that others keep waiting."""

    def rows(self, which):
        time.sleep(WAIT)
        return super().rows(which)


@pytest.fixture
def source():
    return Slow(sp.random_array((30, 20), density=0.3, format="csr", rng=np.random.default_rng(0)))


def seconds_beyond_work(source, monkeypatch, read):
    numbers = iter([700.0, 700.0 + read])
    monkeypatch.setattr(counted, "device_bytes", lambda: next(numbers))
    some = CellSample(np.arange(30))
    assert some.take(source).shape == (30, 20)
    assert 0 < some.work < WAIT
    return some.seconds - some.work


def test_waiting_for_other_programs_takes_no_time(source, monkeypatch):
    assert seconds_beyond_work(source, monkeypatch, 0) == 0


def test_waiting_for_a_device_does_by_what_it_has_read(source, monkeypatch):
    assert seconds_beyond_work(source, monkeypatch, 1e6) == pytest.approx(0.01)


def test_no_more_than_has_passed_is_waited(source, monkeypatch):
    begun = time.perf_counter()
    beyond = seconds_beyond_work(source, monkeypatch, 1e12)
    assert 0 < beyond < time.perf_counter() - begun


def test_a_system_that_does_not_tell(source, monkeypatch):
    monkeypatch.setattr(counted, "resource", None)
    some = CellSample(np.arange(30))
    some.take(source)
    assert some.seconds == some.work


def test_seconds_of_a_plan_are_work(monkeypatch):
    """Of a machine on which every second of work takes ten."""
    adata = lfm.datasets.simulate(200, 50, 2)
    passed = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 1e6 * passed())
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 * passed())
    begun = time.process_time()
    plan = lfm.plan(adata, 2, max_epochs=1, rng=0)
    assert 0 < plan.seconds < 100 * (time.process_time() - begun)
