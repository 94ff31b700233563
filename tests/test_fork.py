"""Processes forked after a fit work: the threads that torch had started in their parent are not in them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from scvi_lfm import _context

# a process of its own: what is forked must have two threads, whatever this one has
SCRIPT = """
import multiprocessing
import sys
import warnings

import torch
import scvi_lfm as lfm

warnings.simplefilter("ignore")
adata = lfm.datasets.simulate(300, 200, 2, likelihood={likelihood!r}, mu=1)


def work(results):
    {call}
    results.put(torch.get_num_threads())


torch.set_num_threads(2)
lfm.tl.fit(adata, 2, max_epochs=2, progress=False)
context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
child = context.Process(target=work, args=(results,))
child.start()
child.join({seconds})
if child.is_alive():
    child.kill()
    sys.exit("the child hangs")
print(child.exitcode, torch.get_num_threads(), results.get() if child.exitcode == 0 else None)
"""
CALLS = {
    "fit": ("normal", "lfm.tl.fit(adata, 2, max_epochs=2, progress=False)"),
    "fit, counts": ("poisson", "lfm.tl.fit(adata, 2, max_epochs=1, progress=False)"),
    "anomalies": ("normal", "lfm.tl.anomalies(adata)"),
    "predict": ("normal", "lfm.tl.predict(adata, layer_added='expected')"),
}


@pytest.mark.parametrize(("computed_in", "expected"), [(None, []), ("here", []), ("elsewhere", [1])])
def test_only_a_copy_of_a_process_that_computed_is_told_to_use_one_thread(monkeypatch, computed_in, expected):
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    process = {"here": os.getpid(), "elsewhere": os.getpid() + 1}
    monkeypatch.setattr(_context, "_computed_in", process.get(computed_in))
    for _ in range(2):
        _context.prepare_threads()
    assert asked == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems start processes anew")
@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_forked_process_computes_on_one_thread(name):
    likelihood, call = CALLS[name]
    script = SCRIPT.format(likelihood=likelihood, call=call, seconds=500)
    # the process ends by itself: the limit is for a machine that is not to be waited for
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0", "2", "1"]
