"""Values that stay in the file as it is read."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scvi_lfm._cli import _files as files
from scvi_lfm._cli._drafts import new_file
from scvi_lfm._cli._messages import CommandError
from scvi_lfm._cli._writing import write_new

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> ad.AnnData:
    """Values of all kinds."""
    X = sp.random(30, 20, 0.2, format="csr", dtype=np.float32, rng=1)
    adata = ad.AnnData(X, layers={"dense": X.toarray(), "csc": X.tocsc()}, obsm={"X_pca": np.ones((30, 2))})
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "data.h5ad")
    adata.write_zarr(tmp_path / "data.zarr")
    return adata


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_values_stay_in_the_file(data: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    found = files.read_data(tmp_path / f"data.{suffix}")
    assert isinstance(found.obsm["X_pca"], np.ndarray)
    for part in (found.X, found.raw.X):
        assert not sp.issparse(part)
        assert (part.to_memory() != data.X).nnz == 0
    assert sp.issparse(found.layers["csc"])  # where cells cannot be read one by one
    assert not isinstance(found.layers["dense"], np.ndarray)
    # and can be written from there into the other format
    other = tmp_path / ("other.zarr" if suffix == "h5ad" else "other.h5ad")
    with new_file(other, files.DATA) as draft:
        write_new(found, draft)
    again = ad.read_zarr(other) if suffix == "h5ad" else ad.read_h5ad(other)
    for name, values in {None: again.X, **again.layers, "raw": again.raw.X}.items():
        np.testing.assert_array_equal(values if name == "dense" else values.toarray(), data.layers["dense"])


def test_without_values(data: ad.AnnData, tmp_path: Path) -> None:
    for suffix in ("h5ad", "zarr"):
        found = files.read_data(tmp_path / f"data.{suffix}", values=False)
        assert found.X is None
        assert not found.layers
        assert found.raw is None
        assert found.obs_names.equals(data.obs_names)


@pytest.mark.parametrize("part", ["indices", "indptr"])
@pytest.mark.parametrize("matrix", ["X", "layers/csc"])  # left in the file, and read into memory
@pytest.mark.half_slow
def test_a_matrix_that_points_outside_itself(
    data: ad.AnnData, tmp_path: Path, part: str, matrix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PIECE", 50)
    with h5py.File(tmp_path / "data.h5ad", "r+") as file:
        file[f"{matrix}/{part}"][-1] = 2000
    with pytest.raises(CommandError, match="cannot read"):
        files.read_data(tmp_path / "data.h5ad")


HOLD = """
import sys, time
from pathlib import Path
from scvi_lfm._cli import _files as files
adata = files.read_data(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="locks differ")
def test_locks_end_with_the_process(data: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "data.h5ad"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with h5py.File(path, "r"):  # others may read
            pass
        with pytest.raises(BlockingIOError):  # and nobody may write
            h5py.File(path, "r+", locking=True)
        process.kill()
    with h5py.File(path, "r+", locking=True) as file:
        assert "X" in file
