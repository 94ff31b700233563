"""Files for the command line to read."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from scvi_lfm._cli import _files as files
from scvi_lfm._cli._probe import check_survives

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and counts, the same fitted, and files that are no data. Not to be written into."""
    folder = tmp_path_factory.mktemp("cli")
    adata = lfm.datasets.simulate(n_cells=120, n_genes=60, n_factors=3, rng=1)
    adata.obs["group"] = pd.Categorical(np.repeat(["one", "two", "three"], 40))
    adata.obs["chosen"] = adata.obsm["A"][:, 0] > 0
    adata.X[5, 7] += 30
    adata.write_h5ad(folder / "data.h5ad")
    adata.write_zarr(folder / "data.zarr")
    counts = lfm.datasets.simulate(120, 60, 3, likelihood="poisson", depth_spread=0.2, rng=1)
    counts.obs["depth"] = counts.obs["size_factor"]
    counts.obs["chosen"] = counts.obsm["A"][:, 0] > 0
    values = counts.X.toarray()
    values[5, 7] += 10
    counts.X = sp.csr_matrix(values)
    counts.write_h5ad(folder / "counts.h5ad")
    lfm.tl.fit(counts, 3, progress=False)
    counts.write_h5ad(folder / "fitted_counts.h5ad")
    lfm.tl.fit(adata, 3, progress=False)
    adata.write_h5ad(folder / "fitted.h5ad")
    adata.X *= np.where(np.arange(60) < 30, 1e-30, 1e37).astype(np.float32)
    adata.write_h5ad(folder / "extreme.h5ad")
    whole = (folder / "data.h5ad").read_bytes()
    (folder / "truncated.h5ad").write_bytes(whole[: len(whole) // 2])
    (folder / "text.h5ad").write_text("cell,gene,count\n")
    (folder / "empty.zarr").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.zarr").mkdir()
    (folder / "notes" / "notes.zarr" / "mine.txt").write_text("keep me")
    (folder / "data.csv").write_text("1,2\n")
    return folder


@pytest.fixture(scope="session")
def check_once() -> Callable[[Path, int], None]:
    """Whether HDF5 gets through a file, asked once until it changes: each time, a copy of the process asks."""
    return cache(lambda path, changed: check_survives(path))


@pytest.fixture(autouse=True)
def each_file_is_tried_once(monkeypatch: pytest.MonkeyPatch, check_once: Callable[[Path, int], None]) -> None:
    monkeypatch.setattr(files, "check_survives", lambda path: check_once(path, path.stat().st_mtime_ns))
