"""Every mistake gives exit 2 and one line, before any work, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import scvi_lfm as lfm
from command_line import run
from scvi_lfm._cli import _commands as commands
from scvi_lfm._cli import main

if TYPE_CHECKING:
    from pathlib import Path


IN, OUT, FITTED = "{folder}/data.h5ad", "{tmp}/out.h5ad", "{folder}/fitted.h5ad"
COUNTS = "{folder}/counts.h5ad"

MISTAKES = {
    "no command": ("", "the following arguments are required: COMMAND"),
    "unknown command": ("fti a b", "invalid choice: 'fti'"),
    "unknown option": (
        f"fit {IN} {OUT} --facters 3",
        "unrecognized arguments: --facters 3. Did you mean --n-factors or --size-factors?",
    ),
    "option elsewhere": (
        f"fit {IN} {OUT} --n-comps 3",
        "unrecognized arguments: --n-comps 3. Did you mean --n-factors?",
    ),
    "seed elsewhere": (f"fit {IN} {OUT} --random-state=3", "arguments: --random-state=3. Did you mean --seed?"),
    "batch elsewhere": (f"fit {IN} {OUT} --batch-key b", "Did you mean --covariates? (see scvi-lfm fit --help)"),
    "genes elsewhere": (f"fit {IN} {OUT} --use-highly-variable", "Did you mean --mask-var?"),
    "level elsewhere": (f"anomalies {FITTED} --alpha 0.1", "Did you mean --fdr? (see scvi-lfm anomalies --help)"),
    "unlike any option": (f"fit {IN} {OUT} --xyzzy 3", "unrecognized arguments: --xyzzy 3 (see scvi-lfm fit --help)"),
    "too many files": (f"fit {IN} {OUT} {OUT}", "unrecognized arguments: {tmp}/out.h5ad (see scvi-lfm fit --help)"),
    "no number": (f"fit {IN} {OUT} --n-factors many", "invalid int or auto value: 'many' (see scvi-lfm fit --help)"),
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
    "no counts": (f"fit {IN} {OUT} --normalize", "value(s) that are negative; the first is"),
    "total of nothing": (f"fit {COUNTS} {OUT} --normalize 0", "`normalize` must be above 0, found 0.0"),
    "likelihood": (f"fit {IN} {OUT} --likelihood nb", "found 'nb'. Did you mean negative_binomial?"),
    "no epochs": (f"fit {IN} {OUT} --max-epochs 0", "`max_epochs` must be above 0, found 0.0"),
    "counts wanted": (f"fit {IN} {OUT} --likelihood poisson", "likelihood='poisson' is for counts"),
    "logarithms of counts": (
        f"fit {COUNTS} {OUT} --likelihood poisson --normalize",
        "--likelihood poisson is for counts, and --normalize fits their logarithms",
    ),
    "size factors of logarithms": (
        f"fit {COUNTS} {OUT} --size-factors depth --normalize",
        "--size-factors is for counts, and --normalize fits their logarithms",
    ),
    "size factors": (f"fit {COUNTS} {OUT} --size-factors dept", "obs has no column 'dept'. Did you mean 'depth'?"),
    "size factors of a Normal": (f"fit {IN} {OUT} --size-factors a", "`size_factors` belong to count likelihoods"),
    "covariates": (f"fit {IN} {OUT} --covariates grup", "`covariates`: obs has no column 'grup'"),
    "noise of counts": (f"fit {COUNTS} {OUT} --noise gene", "`noise` belongs to likelihood='normal'"),
    "extreme values": (f"fit {{folder}}/extreme.h5ad {OUT} --n-factors 2", "by too many orders"),
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
    "key of a fit": (
        f"rank {FITTED} --mask chosen --key-added lfm",
        "uns['lfm'] holds a fit, which would be overwritten. Pass another key_added, such as 'rank_genes_lfm'",
    ),
    "field of a fit": (
        f"anomalies {FITTED} --key-added lfm_a",
        "obs['lfm_a'] is a field of the fit 'lfm', which would",
    ),
    "column of one's own": (
        f"anomalies {FITTED} --key-added group",
        "obs['group'] was not written by lfm.tl.anomalies",
    ),
    "fields of a fit": (f"fit {FITTED} {OUT} --key lfm_sd", "is a field of the fit 'lfm', which would be overwritten"),
    "fit of the cells to place": (f"project {FITTED} {FITTED} {OUT}", "uns['lfm'] was written by lfm.tl.fit and would"),
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


@pytest.mark.slow
def test_mistake_in_a_process(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scvi_lfm", "fit", folder / "nowhere.h5ad", tmp_path / "out.h5ad"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"scvi-lfm: error: [^\n]+\n", done.stderr)


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
    monkeypatch.setattr(commands, "read_source", lambda _: pytest.fail("data were read"))
    assert run("fit", folder / "data.h5ad", tmp_path / target) == 2


def test_disk_without_room(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.h5ad"
    out.write_text("yesterday's")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(lfm.tl, "fit", lambda *_, **__: pytest.fail("work was done"))
    assert run("fit", folder / "data.h5ad", out, "--force") == 1
    assert f"cannot write {out}: no room on its disk, 0." in capsys.readouterr().err
    assert out.read_text() == "yesterday's"


def test_traceback_on_request(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="counts"):
        run("fit", folder / "data.h5ad", tmp_path / "out.h5ad", "--layer", "counts", "--traceback")
