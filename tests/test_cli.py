"""The command line: every command against the call it stands for, and every mistake against one line and exit 2."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scvi_lfm as lfm
from scvi_lfm._cli import _commands as commands
from scvi_lfm._cli import _files as files
from scvi_lfm._cli import _parser as parser

if TYPE_CHECKING:
    from pathlib import Path
from scvi_lfm._cli import main

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data to fit, the same data fitted, counts, and files that are no data. Not to be written into."""
    folder = tmp_path_factory.mktemp("cli")
    adata = lfm.datasets.simulate(n_cells=120, n_genes=60, n_factors=3, rng=1)
    adata.obs["group"] = pd.Categorical(np.repeat(["one", "two", "three"], 40))
    adata.obs["chosen"] = adata.obsm["A"][:, 0] > 0
    adata.X[5, 7] += 30
    adata.write_h5ad(folder / "data.h5ad")
    adata.write_zarr(folder / "data.zarr")
    lfm.datasets.pbmc_sorted()[::6, :300].copy().write_h5ad(folder / "counts.h5ad")
    lfm.tl.fit(adata, 3, progress=False)
    adata.write_h5ad(folder / "fitted.h5ad")
    whole = (folder / "data.h5ad").read_bytes()
    (folder / "truncated.h5ad").write_bytes(whole[: len(whole) // 2])
    (folder / "text.h5ad").write_text("cell,gene,count\n")
    (folder / "empty.zarr").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.zarr").mkdir()
    (folder / "notes" / "notes.zarr" / "mine.txt").write_text("keep me")
    (folder / "data.csv").write_text("1,2\n")
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo printed, and the folder it wrote."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("demo") / "results"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["demo", "--out", str(out)])
    assert status == 0
    return printed.getvalue(), out


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scvi_lfm", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def assert_same_fit(one: ad.AnnData, other: ad.AnnData, key: str = "lfm") -> None:
    np.testing.assert_array_equal(one.obsm[f"X_{key}"], other.obsm[f"X_{key}"])
    np.testing.assert_array_equal(one.varm[f"{key}_sd"], other.varm[f"{key}_sd"])
    np.testing.assert_array_equal(one.uns[key]["prior_gene_cov"], other.uns[key]["prior_gene_cov"])


# --- what there is


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], *([name, "--help"] for name in commands.COMMANDS)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"scvi-lfm {lfm.__version__}\n")
    for name in commands.COMMANDS:
        assert f"  scvi-lfm {name}" in printed, f"no example of {name}"


def test_help_does_not_wait_for_libraries() -> None:
    code = (
        "import sys\nfrom scvi_lfm._cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(' '.join({'torch', 'pyro', 'anndata', 'scanpy', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_choices_are_those_of_the_package() -> None:
    from importlib import import_module

    fit, anomalies = import_module("scvi_lfm.tl._fit"), import_module("scvi_lfm.tl._anomalies")
    assert parser.NOISES == fit.NOISES
    assert parser.FAMILIES == fit.FAMILIES
    assert parser.ENGINES == fit.ENGINES
    assert parser.DIRECTIONS == anomalies.DIRECTIONS


# --- the same as in Python


@pytest.mark.parametrize(("source", "target"), [("data.h5ad", "out.zarr"), ("data.zarr", "out.h5ad")])
def test_fit(folder: Path, tmp_path: Path, source: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--n-factors", 3, "--noise", "gene", "--family", "mean_field", "--seed", 7, "--key", "mine"]
    assert run("fit", folder / source, tmp_path / target, *options) == 0
    expected = ad.read_h5ad(folder / "data.h5ad")
    lfm.tl.fit(expected, 3, noise="gene", family="mean_field", rng=7, key_added="mine", progress=False)
    assert_same_fit(files.read_data(tmp_path / target), expected, "mine")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fitted 120 cells x 60 genes with 3 factors" in captured.err
    assert captured.err.endswith(f"scvi-lfm: wrote {tmp_path / target}\n")
    assert [path.name for path in tmp_path.iterdir()] == [target]


def test_fit_normalizes_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", "--n-factors", 4, "--normalize") == 0
    assert "whole numbers" not in capsys.readouterr().err
    counts, fitted = ad.read_h5ad(folder / "counts.h5ad"), ad.read_h5ad(tmp_path / "out.h5ad")
    assert (fitted.X != counts.X).nnz == 0
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    assert abs(fitted.layers["lognorm"] - counts.X).max() < 1e-6
    assert fitted.uns["lfm"]["params"]["layer"] == "lognorm"


def test_fit_of_counts_says_what_to_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", "--n-factors", 2) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scvi-lfm: if the values are counts, --normalize log-normalises them first"
    assert re.match("scvi-lfm: warning: X holds whole numbers", lines[1])
    assert all(line.startswith("scvi-lfm: ") for line in lines)
    assert not any(".py" in line for line in lines)


def test_rank(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "genes.csv", tmp_path / "ranked.h5ad"
    options = ["--groups", "one", "two", "--reference", "three", "--n-top", 2, "--csv", table, "--out", out]
    assert run("rank", folder / "fitted.h5ad", "--groupby", "group", *options) == 0
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    lfm.tl.rank_genes(adata, "group", groups=["one", "two"], reference="three")
    expected = lfm.get.rank_genes_df(adata)
    assert table.read_text() == expected.to_csv(index=False)
    pd.testing.assert_frame_equal(lfm.get.rank_genes_df(ad.read_h5ad(out)), expected)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:]] == expected.groupby("group", observed=True).head(2)[
        ["group", "names"]
    ].to_numpy().tolist()


def test_rank_for_a_mask_against_the_average(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "genes.csv"
    assert run("rank", folder / "fitted.h5ad", "--mask", "chosen", "--reference", "average", "--csv", table) == 0
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    lfm.tl.rank_genes(adata, mask_obs="chosen", reference=None)
    assert table.read_text() == lfm.get.rank_genes_df(adata).to_csv(index=False)


def test_anomalies(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "entries.csv", tmp_path / "scored.zarr"
    options = ["--direction", "up", "--fdr", 0.05, "--n-top", 1, "--csv", table, "--out", out]
    assert run("anomalies", folder / "fitted.h5ad", *options) == 0
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    lfm.tl.anomalies(adata, direction="up", fdr=0.05)
    assert table.read_text() == lfm.get.anomalies_df(adata).to_csv(index=False)
    np.testing.assert_array_equal(files.read_data(out).obs["lfm_anomaly"], adata.obs["lfm_anomaly"])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:2] == ["cell_5", "gene_7"]
    assert len(captured.out.splitlines()) == 2
    assert f"correlate {adata.uns['lfm_anomaly']['depth_correlation']:+.2f} with the number of genes" in captured.err


def test_project(folder: Path, tmp_path: Path) -> None:
    data, fitted, out = folder / "data.h5ad", folder / "fitted.h5ad", tmp_path / "placed.h5ad"
    assert run("project", data, fitted, out, "--key-added", "placed") == 0
    adata = ad.read_h5ad(data)
    lfm.tl.project(adata, ad.read_h5ad(fitted), key_added="placed")
    assert_same_fit(ad.read_h5ad(out), adata, "placed")


def test_project_normalizes_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, fitted, placed = folder / "counts.h5ad", tmp_path / "fitted.h5ad", tmp_path / "placed.h5ad"
    assert run("fit", counts, fitted, "--n-factors", 3, "--normalize") == 0
    capsys.readouterr()
    assert run("project", counts, fitted, placed) == 2
    assert "--normalize" in capsys.readouterr().err
    assert run("project", counts, fitted, placed, "--normalize") == 0
    one, other = ad.read_h5ad(fitted).obsm["X_lfm"], ad.read_h5ad(placed).obsm["X_lfm"]
    np.testing.assert_allclose(one, other, atol=1e-3)


# --- mistakes


IN, OUT, FITTED = "{folder}/data.h5ad", "{tmp}/out.h5ad", "{folder}/fitted.h5ad"

MISTAKES = {
    "no command": ("", "the following arguments are required: COMMAND"),
    "unknown command": ("fti a b", "invalid choice: 'fti'"),
    "unknown option": (f"fit {IN} {OUT} --factors 3", "unrecognized arguments: --factors 3"),
    "no number": (f"fit {IN} {OUT} --n-factors many", "invalid int value: 'many' (see scvi-lfm fit --help)"),
    "missing file": (f"fit {{folder}}/nowhere.h5ad {OUT}", "no such file: {folder}/nowhere.h5ad"),
    "truncated file": (f"fit {{folder}}/truncated.h5ad {OUT}", "truncated file"),
    "text file": (f"fit {{folder}}/text.h5ad {OUT}", "cannot read {folder}/text.h5ad as h5ad"),
    "empty store": (f"fit {{folder}}/empty.zarr {OUT}", "cannot read {folder}/empty.zarr as zarr"),
    "folder as h5ad": ("rank {folder}/notes --mask chosen", "must end in .h5ad or .zarr"),
    "csv": (f"fit {{folder}}/data.csv {OUT}", "data.csv must end in .h5ad or .zarr"),
    "format of the output": (f"fit {IN} {{tmp}}/out.loom", "out.loom must end in .h5ad or .zarr"),
    "format of the table": (f"rank {FITTED} --mask chosen --csv {{tmp}}/genes.xlsx", "must end in .csv"),
    "folder of the output": (f"fit {IN} {{tmp}}/no/out.h5ad", "there is no folder {tmp}/no"),
    "folder in the way": (f"fit {IN} {{folder}}/notes/notes.zarr", "a folder of that name that holds something else"),
    "layer": (f"fit {IN} {OUT} --layer counts", "no layer 'counts'"),
    "layer to normalise": (f"fit {IN} {OUT} --layer counts --normalize", "no layer 'counts'"),
    "no counts": (f"fit {IN} {OUT} --normalize", "X holds negative values"),
    "number of factors": (f"fit {IN} {OUT} --n-factors 61", "allow at most 60"),
    "device": (f"fit {IN} {OUT} --device tpu", "'tpu' is not"),
    "not fitted": (f"rank {IN} --groupby group", "holds no fit 'lfm'. Make one: scvi-lfm fit {folder}/data.h5ad OUT"),
    "other key": (f"anomalies {FITTED} --key lmf", "holds no fit 'lmf'. Did you mean 'lfm'?"),
    "column": (f"rank {FITTED} --groupby grp", "obs has no column 'grp'. Did you mean 'group'?"),
    "group": (f"rank {FITTED} --groupby group --groups tow", "no group 'tow' with cells in it. Did you mean 'two'?"),
    "mask": (f"rank {FITTED} --mask group", "`mask_obs` must be boolean"),
    "neither groups nor mask": (f"rank {FITTED}", "one of the arguments --groupby --mask is required"),
    "both groups and mask": (f"rank {FITTED} --groupby group --mask chosen", "not allowed with argument"),
    "lines": (f"rank {FITTED} --mask chosen --n-top -1", "--n-top must not be negative"),
    "level": (f"anomalies {FITTED} --fdr 2", "`fdr` must lie between 0 and 1"),
    "reference": (f"project {IN} {{folder}}/counts.h5ad {OUT}", "counts.h5ad holds no fit 'lfm'"),
    "demo's folder": ("demo --out {folder}/data.csv", "cannot make the folder {folder}/data.csv"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, message = (
        text.replace("{folder}", str(folder)).replace("{tmp}", str(tmp_path)) for text in MISTAKES[name]
    )
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(command)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"scvi-lfm: error: [^\n]+\n", captured.err)
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


def test_mistake_in_a_process(folder: Path, tmp_path: Path) -> None:
    process = start("fit", folder / "truncated.h5ad", tmp_path / "out.h5ad")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"scvi-lfm: error: [^\n]+\n", err)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write and read everything")
def test_no_permission(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert run("fit", folder / "data.h5ad", closed / "out.h5ad", "--n-factors", 2) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["missing/out.h5ad", "out.h5ad/", "out.csv"])
def test_output_is_checked_before_the_work(
    folder: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.h5ad").mkdir()
    monkeypatch.setattr(commands, "read_data", lambda _: pytest.fail("data were read"))
    assert run("fit", folder / "data.h5ad", tmp_path / target) == 2


def test_disk_without_room(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.h5ad"
    out.write_text("yesterday's")
    usage = files.shutil.disk_usage(tmp_path)._replace(free=2**20 + 1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(lfm.tl, "fit", lambda *_, **__: pytest.fail("work was done"))
    assert run("fit", folder / "data.h5ad", out) == 2
    assert "no room on the disk" in capsys.readouterr().err
    assert out.read_text() == "yesterday's"


def test_traceback_on_request(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="counts"):
        run("fit", folder / "data.h5ad", tmp_path / "out.h5ad", "--layer", "counts", "--traceback")


# --- nothing is lost, nothing is left behind


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_an_output_is_replaced_only_by_a_whole_one(
    folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    arguments = ("fit", folder / "data.h5ad", out, "--n-factors")
    assert run(*arguments, 2) == 0

    def interrupted(adata: ad.AnnData, path: Path) -> None:
        write(adata, path)
        raise KeyboardInterrupt

    write = files.write_data
    monkeypatch.setattr(commands, "write_data", interrupted)
    capsys.readouterr()
    assert run(*arguments, 3) == 130
    assert capsys.readouterr().err == "scvi-lfm: interrupted\n"
    assert files.read_data(out).obsm["X_lfm"].shape == (120, 2)
    monkeypatch.undo()
    assert run(*arguments, 3) == 0
    assert files.read_data(out).obsm["X_lfm"].shape == (120, 3)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_failed_write_leaves_the_output(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "ranked.h5ad").write_text("yesterday's")
    monkeypatch.setattr(ad.AnnData, "write_h5ad", full)
    assert run("rank", folder / "fitted.h5ad", "--mask", "chosen", "--out", tmp_path / "ranked.h5ad") == 2
    assert capsys.readouterr().err == "scvi-lfm: error: cannot write the output: No space left on device\n"
    assert (tmp_path / "ranked.h5ad").read_text() == "yesterday's"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
def test_ctrl_c_in_the_middle_of_a_fit(folder: Path, tmp_path: Path) -> None:
    endless = ["--n-factors", 3, "--max-epochs", 10_000_000, "--tol", 1e-300, "--batch-size", 7]
    process = start("fit", folder / "data.h5ad", tmp_path / "out.h5ad", *endless)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the place for the output is made once the libraries are there
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "scvi-lfm: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real.h5ad").write_text("yesterday's")
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
        assert run("rank", folder / "fitted.h5ad", "--mask", "chosen") == 0
    assert capsys.readouterr().err == ""


def test_warning_filters_are_left_alone(folder: Path, tmp_path: Path) -> None:
    before, show = list(warnings.filters), warnings.showwarning
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", "--n-factors", 2) == 0
    assert run("rank", folder / "text.h5ad", "--mask", "chosen") == 2
    assert warnings.filters == before
    assert warnings.showwarning is show


# --- the demo


def test_demo_tells_and_writes_the_main_job(demo: tuple[str, Path]) -> None:
    printed, out = demo
    adata = ad.read_h5ad(out / "pbmc_sorted.h5ad")
    assert adata.uns["lfm"]["params"]["layer"] == "lognorm"
    for group in adata.obs["facs_celltype"].cat.categories:
        best = " ".join(lfm.get.rank_genes_df(adata, group)["names"].head(3))
        assert re.search(rf"^  {re.escape(group)} +{re.escape(best)} ", printed, re.MULTILINE)
    for entry in lfm.get.anomalies_df(adata).head(5).itertuples():
        assert re.search(rf"^{entry.cell} +{re.escape(entry.gene)} ", printed, re.MULTILINE)
    assert f"correlate {adata.uns['lfm_anomaly']['depth_correlation']:+.2f} with" in printed
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {"overview.png", "rank_genes.png", "loadings.png", "variance.png", "elbo.png"}
    assert figures | {"pbmc_sorted.h5ad"} == {path.name for path in out.iterdir()}
    assert all(name in printed for name in figures)
    assert str(out) in printed


def test_demo_knows_its_data(demo: tuple[str, Path]) -> None:
    adata = ad.read_h5ad(demo[1] / "pbmc_sorted.h5ad")
    for group, gene in (("CD19+ B", "CD79A"), ("CD56+ NK", "GNLY"), ("CD14+ Monocyte", "S100A8")):
        assert gene in lfm.get.rank_genes_df(adata, group)["names"].head(10).to_numpy()


def test_demo_prints_a_next_step_that_works(demo: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    step = re.search(r"^  scvi-lfm (rank .+)$", demo[0], re.MULTILINE)
    assert step is not None
    assert main(shlex.split(step[1])) == 0
    assert "GNLY" in capsys.readouterr().out
