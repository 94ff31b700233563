"""Nothing is lost and nothing is left behind, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import pytest

from command_line import run
from scvi_lfm._cli import _commands as commands
from scvi_lfm._cli import _files as files
from scvi_lfm._cli._writing import write_data

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_lfm._cli._drafts import Draft
    from scvi_lfm._cli._sources import Source


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_an_output_is_replaced_only_by_a_whole_one(
    folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    arguments = ("fit", folder / "data.h5ad", out, "--n-factors")
    assert run(*arguments, 2) == 0

    def interrupted(adata: ad.AnnData, draft: Draft, source: Source) -> None:
        write_data(adata, draft, source)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "write_data", interrupted)
    capsys.readouterr()
    assert run(*arguments, 3) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "scvi-lfm: interrupted"
    assert files.read_data(out).obsm["X_lfm"].shape == (120, 2)
    monkeypatch.undo()
    assert run(*arguments, 3) == 0
    assert files.read_data(out).obsm["X_lfm"].shape == (120, 3)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow), "csv"])
def test_a_failed_write_leaves_the_output(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    out = tmp_path / f"ranked.{suffix}"
    arguments = ("rank", folder / "fitted.h5ad", "--mask", "chosen", "--csv" if suffix == "csv" else "--out", out)
    assert run(*arguments) == 0
    before = everything_in(tmp_path)
    capsys.readouterr()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        assert run(*arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert capsys.readouterr() == (
        "",
        f"scvi-lfm: error: cannot write {out}: File too large. What was there is as it was.\n",
    )
    assert everything_in(tmp_path) == before


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


INTERRUPTED = """
import signal, sys, time
import scvi_lfm as lfm
from scvi_lfm._cli import main

def fit(*args, **kwargs):
    # a test run in the background passes on that interrupts are ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("fitting", flush=True)
    time.sleep(60)

lfm.tl.fit = fit
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
def test_ctrl_c_in_the_middle_of_a_fit(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "fit", str(folder / "data.h5ad"), str(tmp_path / "out.h5ad")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "fitting\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "scvi-lfm: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real.h5ad").touch()
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "real.h5ad")
    assert run("rank", folder / "fitted.h5ad", "--mask", "chosen", "--out", tmp_path / "link.h5ad") == 0
    assert (tmp_path / "link.h5ad").is_symlink()
    assert "rank_genes_lfm" in ad.read_h5ad(tmp_path / "real.h5ad").uns


@pytest.mark.skipif(os.name == "nt", reason="pipes differ")
def test_a_reader_that_leaves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert run("rank", folder / "fitted_counts.h5ad", "--mask", "chosen") == 0
    assert capsys.readouterr().err == ""


def test_warning_filters_are_left_alone(folder: Path, tmp_path: Path) -> None:
    before, show = list(warnings.filters), warnings.showwarning
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", "--n-factors", 2) == 0
    assert run("rank", folder / "text.h5ad", "--mask", "chosen") == 2
    assert warnings.filters == before
    assert warnings.showwarning is show


@pytest.mark.parametrize(
    "command", ["fit {same} {same}", "rank {same} --mask chosen --out {same}", "project {data} {same} {same}"]
)
def test_an_input_is_replaced_only_by_force(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    same = tmp_path / "same.h5ad"
    same.write_bytes((folder / "fitted.h5ad").read_bytes())
    before = same.read_bytes()
    (tmp_path / "link.h5ad").symlink_to(same)
    words = command.format(same=same, data=folder / "data.h5ad").split()
    by_link = [*words[:-1], str(tmp_path / "link.h5ad")]
    for asked in (words, by_link):
        assert run(*asked) == 2
        assert f"{asked[-1]} is an input, which the output would replace" in capsys.readouterr().err
        assert same.read_bytes() == before
    assert run(*words, "--force") == 0
    assert same.read_bytes() != before
    assert "lfm" in ad.read_h5ad(same).uns
    assert {path.name for path in tmp_path.iterdir()} == {"same.h5ad", "link.h5ad"}
