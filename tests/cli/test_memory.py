"""Commands that need no values take no memory for them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm

if TYPE_CHECKING:
    from pathlib import Path

N, M = 4000, 12_000
PEAK = """
import resource, sys
from scvi_lfm._cli import main
status = main(sys.argv[1:])
print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(*arguments: object) -> int:
    """Bytes that a command takes at most."""
    command = [sys.executable, "-W", "ignore", "-c", PEAK, *map(str, arguments)]
    status, most = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    assert status == "0"
    return int(most) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak differs")
def test_rank_and_merge(tmp_path: Path) -> None:
    """A file with 200 MB of values, against the same cells and genes without any."""
    rng = np.random.default_rng(0)
    few = lfm.datasets.simulate(N, 50, 2, rng=1)
    lfm.tl.fit(few, 2, progress=False)
    results = ad.AnnData(obs=few.obs, var=few.var, obsm=few.obsm, varm=few.varm, uns=few.uns)
    results.write_h5ad(tmp_path / "results.h5ad")
    bare = ad.AnnData(obs=pd.DataFrame(index=few.obs_names), var=pd.DataFrame(index=few.var_names))
    bare.obs["chosen"] = np.arange(N) < 100
    peaks = {}
    for name in ("bare", "full"):
        data, out = tmp_path / f"{name}.h5ad", tmp_path / f"{name}_out.h5ad"
        bare.write_h5ad(data)
        if name == "full":
            with h5py.File(data, "r+") as file:
                layer = file["layers"].create_dataset("values", (N, 50), dtype="f4")
                layer.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
                layer[...] = rng.random((N, 50), dtype=np.float32)
                big = file.create_dataset("raw/X", (N, M), dtype="f4")
                big.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
                for start in range(0, N, 500):
                    big[start : start + 500] = rng.random((500, M), dtype=np.float32)
                file["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
                ad.io.write_elem(file["raw"], "var", pd.DataFrame(index=[f"g{k}" for k in range(M)]))
        peaks[name, "merge"] = peak("merge", data, tmp_path / "results.h5ad", out)
        peaks[name, "rank"] = peak("rank", out, "--mask", "chosen", "--out", tmp_path / "ranked.h5ad", "--n-top", 0)
    size = (tmp_path / "full.h5ad").stat().st_size
    assert size > 4 * N * M
    for command in ("merge", "rank"):
        # read into memory, the values alone would take all of their size
        assert peaks["full", command] - peaks["bare", command] < size / 2
