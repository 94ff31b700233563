"""A process that is killed while it writes into a store in place leaves the old fields or the new."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm._cli import main

if TYPE_CHECKING:
    from pathlib import Path

# kills copies of itself, which have imported everything and put one of two results in place, at random times
KILLING = """
import os, random, signal, sys, time
import anndata, h5py, scanpy, zarr
import scvi_lfm.tl
from scvi_lfm._cli import _commands, main

store, *results = sys.argv[1:]

def merge(k):
    number = os.fork()
    if number == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main(["merge", store, results[k % 2], "--in-place"]))
    return number

def wait(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

start = time.monotonic()
if wait(merge(0)) != 0:
    sys.exit("the first one failed")
seconds, rng, killed = time.monotonic() - start, random.Random(1), 0
for k in range(1, 21):
    number = merge(k)
    time.sleep(rng.uniform(0, seconds))
    os.kill(number, signal.SIGKILL)
    killed += wait(number) == -signal.SIGKILL
    seen = anndata.read_zarr(store)
    print(seen.obsm["X_lfm"].shape[1], seen.varm["lfm"].shape[1], len(seen.uns["lfm"]["variance_ratio"]),
          "lfm_theta" in seen.var, "lfm_sigma" in seen.var, float(seen.X.sum()))
sys.exit(0 if killed > 5 else f"only {killed} were killed")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of a process")
@pytest.mark.filterwarnings("ignore")
def test_kills_in_place(folder: Path, tmp_path: Path) -> None:
    counts, store = ad.read_h5ad(folder / "counts.h5ad"), tmp_path / "store.zarr"
    counts.write_zarr(store)
    for n_factors, likelihood in ((2, "normal"), (3, "negative_binomial")):
        fitted = counts.copy()
        lfm.tl.fit(fitted, n_factors, likelihood=likelihood, progress=False)
        fitted.write_h5ad(tmp_path / f"{likelihood}.h5ad")
    results = [tmp_path / "negative_binomial.h5ad", tmp_path / "normal.h5ad"]
    command = [sys.executable, "-W", "ignore", "-c", KILLING, str(store), *map(str, results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    total = float(counts.X.sum())
    states = {f"3 3 3 True False {total}", f"2 2 2 False True {total}"}
    lines = done.stdout.splitlines()
    assert len(lines) == 20
    assert set(lines) <= states
    # what they left is taken away by the next one
    assert main(["merge", str(store), str(results[0]), "--in-place"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if "store" in path.name) == ["store.zarr"]
    np.testing.assert_array_equal(ad.read_zarr(store).X.toarray(), counts.X.toarray())
