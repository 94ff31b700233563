"""An output is its input, byte for byte, with the new fields in it."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from command_line import run
from scvi_lfm._cli import _copies as copies

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# what a fit of counts adds to the columns, and what lists them
NEW = {"obs": ["lfm_a", "lfm_a_sd", "lfm_size_factor"], "var": ["lfm_b", "lfm_b_sd", "lfm_theta"]}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same counts as h5ad and zarr, with everything that an AnnData may hold, and more."""
    folder = tmp_path_factory.mktemp("rich")
    adata = lfm.datasets.simulate(60, 40, 2, likelihood="poisson", mu=1, rng=1)
    adata.X = sp.csc_matrix(adata.X)
    adata.raw = adata.copy()
    adata.layers["dense"] = adata.X.toarray()
    adata.obs["type"] = pd.Categorical(np.repeat(["b", "a", "z"], 20), categories=["z", "b", "a", "none"], ordered=True)
    adata.obs["seen"] = pd.array([None, True, False] * 20, dtype="boolean")
    adata.obs_names.name = "barcode"
    adata.obsp["near"] = sp.eye(60, format="csr")
    adata.uns["mine"] = {"deep": {"er": np.arange(3)}}
    adata.write_h5ad(folder / "data.h5ad", compression="gzip")
    with h5py.File(folder / "data.h5ad", "r+") as file:
        file.create_dataset("others/x", data=np.arange(5)).attrs["of"] = "mine"
        file.attrs["note"] = "keep"
    for version in (2, 3):
        with ad.settings.override(zarr_write_format=version), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what anndata will do in its next version
            adata.write_zarr(folder / f"v{version}.zarr")
        (folder / f"v{version}.zarr" / "notes.txt").write_text("keep")
    return folder


def contents(path: Path) -> dict[str, object]:
    """Bytes as they are stored of every array of an h5ad, and every attribute; every file of a zarr store."""
    if path.is_dir():
        return {str(part.relative_to(path)): part.read_bytes() for part in path.rglob("*") if part.is_file()}
    found: dict[str, object] = {}

    def look(name: str, part: h5py.Group | h5py.Dataset) -> None:
        if isinstance(part, h5py.Dataset):
            chunks = part.chunks and part.id.get_num_chunks()
            stored = [part.id.read_direct_chunk(part.id.get_chunk_info(k).chunk_offset) for k in range(chunks or 0)]
            found[name] = stored or np.asarray(part[()]).tolist()
        found.update({f"{name}@{key}": np.asarray(value).tolist() for key, value in part.attrs.items()})

    with h5py.File(path) as file:
        look("", file)
        file.visititems(look)
    return found


def assert_kept(before: dict[str, object], after: dict[str, object], suffix: str) -> None:
    # that list the columns, or all that there is
    lists = {"obs@column-order", "var@column-order"}
    if suffix == ".zarr":
        lists = {f"{name}/{file}" for name in ("obs", "var") for file in (".zattrs", "zarr.json")}
        lists |= {".zmetadata", "zarr.json"}
    assert {name for name, value in before.items() if after.get(name) != value} <= lists


@pytest.mark.parametrize("name", ["data.h5ad", "v2.zarr", pytest.param("v3.zarr", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_everything_else_stays(rich: Path, tmp_path: Path, name: str) -> None:
    data, out = rich / name, tmp_path / name
    assert run("fit", data, out, "--n-factors", 2) == 0
    before, after = contents(data), contents(out)
    assert contents(data) == before
    assert_kept(before, after, data.suffix)
    assert len(after) > len(before)
    if data.suffix == ".zarr":
        found, old = ad.read_zarr(out), ad.read_zarr(data)
    else:
        with h5py.File(out, "r+") as file:
            del file["others"]  # with it anndata itself reads none
        found, old = ad.read_h5ad(out), ad.read_zarr(rich / "v2.zarr")
    for frame, new in NEW.items():
        assert getattr(found, frame).columns.tolist() == [*getattr(old, frame).columns, *new]
    expected = old.copy()
    lfm.tl.fit(expected, 2, progress=False)
    np.testing.assert_array_equal(found.obsm["X_lfm"], expected.obsm["X_lfm"])
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert set(found.uns["lfm"]) == set(expected.uns["lfm"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v2.zarr", "v3.zarr"])
@pytest.mark.filterwarnings("ignore")
def test_in_place(rich: Path, tmp_path: Path, name: str) -> None:
    store = tmp_path / name
    shutil.copytree(rich / name, store)
    before = contents(store)
    inodes = {part: part.stat().st_ino for folder in ("X", "layers", "raw") for part in (store / folder).rglob("*")}
    for n_factors in (2, 1):
        assert run("fit", store, "--in-place", "--n-factors", n_factors) == 0
        assert_kept(before, contents(store), ".zarr")
        assert ad.read_zarr(store).obsm["X_lfm"].shape == (60, n_factors)
    # the same files, where the system has links
    chunks = {part: inode for part, inode in inodes.items() if part.is_file() and not part.name.startswith((".z", "z"))}
    if os.name == "posix":
        assert chunks
        assert all(part.stat().st_ino == inode for part, inode in chunks.items())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert run("rank", store, "--in-place", "--groupby", "type", "--n-top", 0) == 0
    ranked = ad.read_zarr(store)
    expected = ranked.copy()
    lfm.tl.rank_genes(expected, "type")
    assert lfm.get.rank_genes_df(ranked).equals(lfm.get.rank_genes_df(expected))


MISTAKES = {
    "h5ad": ("fit data.h5ad --in-place", "--in-place is for zarr: a process that ends while it writes into"),
    "two outputs": ("fit v2.zarr out.zarr --in-place", "--in-place writes into {rich}/v2.zarr: leave a file to write"),
    "results": ("fit v2.zarr --in-place --results-only", "leave --results-only out"),
    "no output": ("fit data.h5ad", "name a file to write to, or pass --in-place to write into a zarr store"),
    "results nowhere": ("rank data.h5ad --groupby type --results-only", "--results-only says what --out holds"),
    "no results": ("merge data.h5ad v2.zarr out.h5ad", "v2.zarr holds no results. Make them: scvi-lfm fit"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(rich: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, message = MISTAKES[name]
    before = {path: contents(path) for path in rich.iterdir()}
    words = [
        tmp_path / word if word.startswith("out") else rich / word if "." in word else word for word in command.split()
    ]
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.replace("{rich}", str(rich)) in line
    assert {path: contents(path) for path in rich.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_formats_are_written_whole(rich: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", rich / "data.h5ad", tmp_path / "out.zarr", "--n-factors", 0) == 0
    assert "warning: others in" in capsys.readouterr().err
    found, expected = ad.read_zarr(tmp_path / "out.zarr"), ad.read_zarr(rich / "v2.zarr")
    assert (found.X != expected.X).nnz == 0
    # of a command that reads no values
    assert run("rank", tmp_path / "out.zarr", "--groupby", "type", "--n-top", 0, "--out", tmp_path / "out.h5ad") == 0
    ranked = ad.read_h5ad(tmp_path / "out.h5ad")
    assert "rank_genes_lfm" in ranked.uns
    assert (ranked.X != expected.X).nnz == 0
    assert (ranked.raw.X != expected.raw.X).nnz == 0


@pytest.fixture
def ancient(tmp_path: Path) -> Path:
    """A file as anndata wrote them before 0.7: obs and var are tables, and nothing says how it is encoded."""
    path = tmp_path / "ancient.h5ad"
    counts = lfm.datasets.simulate(60, 40, 2, likelihood="poisson", mu=1, rng=1)
    with h5py.File(path, "w") as file:
        file["X"] = counts.X.toarray() if sp.issparse(counts.X) else counts.X
        for frame, names in (("obs", counts.obs_names), ("var", counts.var_names)):
            table = np.empty(len(names), dtype=[("index", "S12"), ("number", "f4")])
            table["index"], table["number"] = names.to_numpy().astype("S12"), np.arange(len(names))
            file[frame] = table
    return path


@pytest.mark.filterwarnings("ignore")
def test_an_encoding_of_old_is_written_anew(ancient: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    assert run("fit", ancient, out, "--n-factors", 2) == 0
    old, found = ad.read_h5ad(ancient), ad.read_h5ad(out)
    np.testing.assert_array_equal(found.X, old.X)
    np.testing.assert_array_equal(found.obs["number"], np.arange(60))
    assert found.obsm["X_lfm"].shape == (60, 2)
    with h5py.File(out) as file:
        assert file.attrs["encoding-type"] == "anndata"


def test_columns_in_an_encoding_of_old(rich: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New columns beside such would be read as if they were such."""
    store = tmp_path / "old.zarr"
    with ad.settings.override(zarr_write_format=2):
        ad.AnnData(np.random.default_rng(0).poisson(2, (60, 40)).astype(np.float32)).write_zarr(store)
    (store / ".zmetadata").unlink()
    attributes = store / "obs" / ".zattrs"
    attributes.write_text(attributes.read_text().replace("0.2.0", "0.1.0"))
    assert run("fit", store, "--in-place", "--n-factors", 0) == 2
    assert "encoding of old, which --in-place does not write into" in capsys.readouterr().err
    assert run("fit", store, tmp_path / "new.zarr", "--n-factors", 0) == 0
    assert "lfm_a" in ad.read_zarr(tmp_path / "new.zarr").obs


def test_an_input_that_is_changed_in_between(
    rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out, fit = tmp_path / "v2.zarr", tmp_path / "out.zarr", lfm.tl.fit
    shutil.copytree(rich / "v2.zarr", store)

    def change(*arguments: object, **options: object) -> None:
        fit(*arguments, **options)
        (store / "new").write_text("by another process")

    monkeypatch.setattr(lfm.tl, "fit", change)
    before = contents(store)
    for target in ((out,), ("--in-place",)):
        assert run("fit", store, *target, "--n-factors", 0) == 2
        assert "was changed while the command ran, so nothing was written" in capsys.readouterr().err
        assert contents(store) == before | {"new": b"by another process"}
        (store / "new").unlink()
    assert not out.exists()


def test_the_first_error_ends_the_copy_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own number and words, not as one of a list."""
    copied = []

    def full(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = tmp_path / "store"
    for name in ("a", "b/c", "b/d", "e/f/g", "e/h"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text(name)
    copies.copy(store, tmp_path / "whole")
    assert {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")} == {
        path.relative_to(store) for path in store.rglob("*")
    }
    assert (tmp_path / "whole" / "e" / "f" / "g").read_text() == "e/f/g"
    monkeypatch.setattr(copies, "_copy_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        copies.copy(store, tmp_path / "some")
    assert (error.value.errno, len(copied)) == (errno.ENOSPC, 3)


@pytest.mark.parametrize("name", ["data.h5ad", pytest.param("v2.zarr", marks=pytest.mark.slow)])
def test_no_room_for_a_copy(
    rich: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = rich / name, tmp_path / name
    size = sum(part.stat().st_size for part in [data, *data.rglob("*")] if part.is_file())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(lfm.tl, "fit", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    assert run("fit", data, out, "--n-factors", 0) == 1
    assert f"cannot write {out}: no room on its disk, " in capsys.readouterr().err
    monkeypatch.undo()

    def unknown(_: object) -> None:
        raise OSError

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    assert run("fit", data, out, "--n-factors", 0) == 0
