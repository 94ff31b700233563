"""A fit that was stopped, wherever and by whatever, and is called again ends with the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm
from lines_run import lines_run
from scvi_lfm.inference import checkpoint
from scvi_lfm.inference.counts.state import Cells

pytestmark = pytest.mark.filterwarnings("ignore:The fit did not converge", "ignore:The ELBO still rises")
N, M = 90, 40


class KilledError(Exception):
    """As if the process had ended here: nothing is done about it."""


@dataclass(frozen=True)
class Case:
    """A fit: its values and arguments."""

    likelihood: str = "normal"
    n_factors: int | str = 3
    options: dict[str, Any] = field(default_factory=dict)
    max_cov_bytes: int = 2**30
    scale: float = 1.0  # of the noise

    def data(self) -> ad.AnnData:
        drawn = "poisson" if self.likelihood == "ordinal" else self.likelihood
        noise = {"sigma": self.scale} if drawn == "normal" else {}
        adata = lfm.datasets.simulate(N, M, 2, likelihood=drawn, mu=1.0, factor_scales=[0.8, 0.5], **noise)
        if self.likelihood == "ordinal":
            adata.X = adata.X.minimum(adata.X.sign() * 4)
        adata.obs["odd"] = np.arange(N) % 2 == 1
        rng = np.random.default_rng(0)
        adata.layers["test"] = sp.csr_matrix(rng.random((N, M)) < 0.05)
        if self.options.get("observed") == "stored":
            kept = np.nonzero(rng.random((N, M)) < 0.6)
            adata.X = sp.csr_matrix((adata.to_df().to_numpy()[kept], kept), shape=adata.shape)
        return adata

    def fit(self, adata: ad.AnnData, **options: Any) -> None:
        given = {"batch_size": N, "max_epochs": 4, "tol": 1e-9, "likelihood": self.likelihood, "progress": False}
        lfm.tl.fit(adata, self.n_factors, **given | self.options | options)


BATCHES = {"batch_size": 30}
CASES = {
    "normal": Case(),
    "normal in batches": Case(options=BATCHES),
    "normal, noise of cells": Case(options={**BATCHES, "noise": "cell_gene"}),
    "normal, noise of genes": Case(options={**BATCHES, "noise": "gene", "covariates": "odd"}),
    "normal, mean field": Case(options={**BATCHES, "family": "mean_field", "prior_scales": {"a": 0.5}}),
    "normal in float64": Case(options=BATCHES, scale=1e-5),
    "normal, auto": Case(n_factors="auto", options={**BATCHES, "max_epochs": 8, "tol": 0.05}),
    "stored": Case(options={"observed": "stored"}),
    "stored in batches": Case(options={**BATCHES, "observed": "stored"}),
    "held out in batches": Case(options={**BATCHES, "held_out": "test"}),
    "held out, auto": Case(n_factors="auto", options={"held_out": "test", "max_epochs": 8}),
    "counts": Case("negative_binomial"),
    "counts in batches": Case("negative_binomial", options=BATCHES),
    "counts, auto": Case("negative_binomial", "auto", {**BATCHES, "max_epochs": 8, "tol": 0.05}),
    "counts, held out": Case("poisson", options={**BATCHES, "held_out": "test", "covariates": "odd"}),
    "counts without covariances": Case("negative_binomial", options=BATCHES, max_cov_bytes=1000),
    "levels in batches": Case("ordinal", options=BATCHES),
}
# one of each engine and of each way through the loop
QUICK = {"normal in batches", "normal, auto", "stored in batches", "counts in batches", "counts without covariances"}


def stored(adata: ad.AnnData) -> dict[str, np.ndarray]:
    """All that a fit has written, but for how long it took."""
    found: dict[str, np.ndarray] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}/{key}", part)
        elif not name.endswith("/seconds"):
            found[name] = np.asarray(value)

    for frame in ("obs", "var", "obsm", "varm", "uns"):
        container = getattr(adata, frame)
        for key in container:
            if "lfm" in str(key).split("_"):
                walk(f"{frame}/{key}", dict(container[key]) if frame == "uns" else container[key])
    return found


def assert_same(one: ad.AnnData, other: ad.AnnData) -> None:
    first, second = stored(one), stored(other)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    """That takes a second or more where others write, and holds nothing that a test could see."""
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _: None)


@pytest.fixture
def writes(monkeypatch):
    """Write at every place; hooks are called with the path after each."""
    real, hooks = checkpoint.write_file, []

    def write(path, *args):
        real(path, *args)
        for hook in hooks:
            hook(path)

    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "write_file", write)
    return hooks


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_fit_that_is_killed_at_every_place_ends_with_the_same_bits(name, writes, tmp_path):
    """At its first write each time: each call goes on from where the one before was killed, at the next place."""
    case, path, data, calls = CASES[name], tmp_path / "fit", CASES[name].data(), 0
    whole, left_alone, places = data.copy(), data.copy(), []
    case.fit(whole)
    writes.append(places.append)
    case.fit(left_alone, checkpoint=tmp_path / "left alone")
    assert_same(whole, left_alone)
    in_batches = case.options.get("batch_size", N) < N
    assert len(places) > (10 if in_batches else 4)

    def kill(_):
        raise KilledError

    writes[:] = [kill]
    while calls < 100:
        adata, calls = data.copy(), calls + 1
        try:
            case.fit(adata, checkpoint=path)
            break
        except KilledError:
            assert stored(adata) == {}
    assert calls > len(places)
    assert_same(whole, adata)


# every call computes all that is left
@pytest.mark.parametrize(
    "name", ["counts in batches", *(pytest.param(name, marks=pytest.mark.slow) for name in ("normal, auto", "stored"))]
)
def test_a_fit_goes_on_from_every_place_to_its_end(name, writes, monkeypatch, tmp_path):
    case, data, copies = CASES[name], CASES[name].data(), []
    whole = data.copy()

    def copy(path):
        copies.append(path.with_name(f"copy{len(copies)}"))
        shutil.copy(path, copies[-1])

    writes.append(copy)
    case.fit(whole, checkpoint=tmp_path / "fit")
    writes.clear()
    monkeypatch.setattr(checkpoint, "EVERY", np.inf)
    for path in copies:
        again = data.copy()
        case.fit(again, checkpoint=str(path))
        assert_same(whole, again)


TRACED = ("loop.py", "course.py", "engine.py", "sweep.py", "state.py", "passes.py")


def of_a_fit(frame, event):
    """Whether a line is one of the loop and the engines."""
    path = Path(frame.f_code.co_filename)
    return event == "line" if "inference" in path.parts and path.name in TRACED else None


# a fit that is traced takes a second or two
@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal in batches", "stored in batches", "counts in batches", "counts, auto"])
def test_ctrl_c_at_any_line_keeps_a_state_that_is_whole(name, tmp_path):
    """Cells of counts are written in place; and the clock has not asked for a single write."""
    case, whole = CASES[name], CASES[name].data()
    n_lines = lines_run(lambda: case.fit(whole), of_a_fit)
    interrupted = 0
    for line in np.linspace(1, n_lines, 12).astype(int).tolist():
        path, adata = tmp_path / str(line), case.data()
        try:
            lines_run(lambda adata=adata, path=path: case.fit(adata, checkpoint=path), of_a_fit, line)
        except KeyboardInterrupt as error:
            interrupted += path.exists()
            notes = " ".join(getattr(error, "__notes__", ()))
            assert (f"fit again with the same data and arguments, checkpoint={str(path)!r}" in notes) == path.exists()
        case.fit(adata, checkpoint=path)
        assert_same(whole, adata)
    assert interrupted >= 3  # the lines before the first epoch are many


def test_a_fit_that_is_done_ends_at_once_and_goes_on_with_more_epochs(tmp_path, monkeypatch):
    case, path = CASES["counts in batches"], tmp_path / "fit"
    five, four, again = case.data(), case.data(), case.data()
    case.fit(five, max_epochs=5)
    case.fit(four, checkpoint=path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("scvi_lfm.inference.counts.engine.CountEngine.epoch", None)
        case.fit(again, checkpoint=path)
    assert_same(four, again)
    assert path.read_bytes() == before
    case.fit(again, max_epochs=5, checkpoint=path, key_added="lfm")
    assert_same(five, again)
    with pytest.raises(ValueError, match="in epoch 5, and `max_epochs` is 4. Pass max_epochs=5 or more"):
        case.fit(again, checkpoint=path)
    assert_same(five, again)


@pytest.mark.parametrize("name", ["normal in batches", "stored in batches", "counts in batches"])
def test_a_fit_that_ended_within_an_epoch_goes_on_inside_it(name, tmp_path, monkeypatch):
    """Three minibatches of 30 cells; the first epoch of the Normal has two, after that of the start."""
    case, path = CASES[name], tmp_path / "fit"
    whole, some, again = case.data(), case.data(), case.data()
    case.fit(whole, max_epochs=3)
    case.fit(some, max_epochs=1.5, checkpoint=path)
    assert some.uns["lfm"]["elbo"]["epoch"][-1] == pytest.approx(1 + 2 / 3)
    before = path.read_bytes()
    case.fit(again, max_epochs=1.5, checkpoint=path)
    assert_same(some, again)
    assert path.read_bytes() == before
    for less in (1.3, 1, 0.5):
        with pytest.raises(ValueError, match=f"in epoch 2, and `max_epochs` is {less}. Pass max_epochs=2 or more"):
            case.fit(again, max_epochs=less, checkpoint=path)
    case.fit(again, max_epochs=3, checkpoint=path, key_added="lfm")
    assert_same(whole, again)


OTHERS = {
    "tol": {"tol": 1e-8},
    "n_factors": {"n_factors": 2},
    "noise": {"noise": "gene"},
    "family": {"family": "mean_field"},
    "batch_size": {"batch_size": 45},
    "prior_scales": {"prior_scales": {"a": 0.5}},
    "seed that rng gave": {"rng": 1},
    "covariates": {"covariates": "odd"},
    "observed": {"held_out": "test"},
    "number of cells and genes": {"mask_var": np.arange(M) > 0},
    "likelihood": {"likelihood": "poisson", "layer": "counts"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_fit_is_refused(what, tmp_path):
    case, path = CASES["normal in batches"], tmp_path / "fit"
    adata = case.data()
    adata.layers["counts"] = np.rint(np.abs(adata.X)).astype(np.float32)
    case.fit(adata, checkpoint=path)
    before, kept = path.read_bytes(), stored(adata)
    options = dict(OTHERS[what])
    other = Case(n_factors=options.pop("n_factors", 3), options=BATCHES)
    with pytest.raises(ValueError, match=rf"differs in: .*\b{what} \(was .*, is .*delete the file"):
        other.fit(adata, checkpoint=path, **options)
    assert path.read_bytes() == before
    assert stored(adata).keys() == kept.keys()


def test_ctrl_c_between_two_writes_of_cells(monkeypatch, tmp_path):
    """Of counts, which are written in place: here the covariances have not followed the means yet."""
    case, path = CASES["counts in batches"], tmp_path / "fit"
    whole, adata = case.data(), case.data()
    case.fit(whole)
    real, calls = Cells.put, 0

    def put(cells, index, new):
        nonlocal calls
        calls += 1
        if calls == 5:
            cells.mean[index] = new.mean
            raise KeyboardInterrupt
        return real(cells, index, new)

    monkeypatch.setattr(Cells, "put", put)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        case.fit(adata, checkpoint=path)
    assert "fit again with the same data and arguments" in interrupted.value.__notes__[0]
    case.fit(adata, checkpoint=path)
    assert_same(whole, adata)


@pytest.mark.parametrize("change", ["one value", "two genes", "two cells"])
def test_a_checkpoint_of_other_values_is_refused(change, tmp_path):
    case, path = CASES["normal in batches"], tmp_path / "fit"
    adata = case.data()
    case.fit(adata, checkpoint=path)
    if change == "one value":
        adata.X[N // 2 + 1, 3] += 0.5
    elif change == "two genes":
        adata.X[:, [3, 4]] = adata.X[:, [4, 3]]
    else:
        adata.X[[3, 4]] = adata.X[[4, 3]]
    with pytest.raises(ValueError, match=r"differs in: values \(was "):
        case.fit(adata, checkpoint=path)


def test_what_does_not_change_the_answer_may_differ(tmp_path):
    case, path = CASES["normal in batches"], tmp_path / "fit"
    adata = case.data()
    case.fit(adata, checkpoint=path)
    copy = lfm.tl.fit(
        adata,
        3,
        **BATCHES,
        max_epochs=4,
        tol=1e-9,
        rng=np.random.default_rng(0),
        key_added="mine",
        copy=True,
        progress=False,
        checkpoint=path,
    )
    np.testing.assert_array_equal(copy.obsm["X_mine"], adata.obsm["X_lfm"])


def test_damaged_and_foreign_files_are_named(tmp_path):
    case, path = CASES["counts in batches"], tmp_path / "fit"
    adata = case.data()
    case.fit(adata, checkpoint=path)
    whole, files = path.read_bytes(), {}
    for size in np.linspace(0, len(whole) - 1, 12).astype(int):
        files[f"first {size} bytes"] = whole[:size]
    rng = np.random.default_rng(0)
    for at in rng.integers(len(whole), size=30):
        files[f"byte {at} changed"] = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    files["text"], files["pickle"] = b"cells by genes", b"\x80\x04K\x01."
    np.savez(tmp_path / "foreign.npz", a=np.ones(3))
    np.save(tmp_path / "foreign.npy", np.ones(3))
    adata.write_h5ad(tmp_path / "foreign.h5ad")
    files |= {name: (tmp_path / name).read_bytes() for name in ("foreign.npz", "foreign.npy", "foreign.h5ad")}
    changed = 0
    for name, content in files.items():
        path.write_bytes(content)
        again, refused = case.data(), ""
        try:
            case.fit(again, checkpoint=path)
        except ValueError as error:
            refused = str(error)
        if refused:
            assert "delete " in refused, name
            assert stored(again) == {}
            assert path.read_bytes() == content
        else:  # a byte that no one reads, such as one of a date
            assert "changed" in name
            changed += 1
            assert_same(adata, again)
    assert changed < 15


def test_a_path_that_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch):
    adata = CASES["normal"].data()
    monkeypatch.setattr("scvi_lfm.tl._fit_prepare.read_matrix", None)
    for path, error, message in (
        (3, TypeError, "`checkpoint` must be a path such as 'fit.ckpt', found int"),
        (tmp_path, ValueError, "is a folder"),
        ("", ValueError, "is a folder"),
        (tmp_path / "none" / "fit", ValueError, "a folder that does not exist"),
        (os.devnull, ValueError, "is no regular file"),
    ):
        with pytest.raises(error, match=message):
            lfm.tl.fit(adata, 3, checkpoint=path)
    with pytest.raises(ValueError, match="`checkpoint` belongs to engine='natural_gradient', and engine is 'pyro'"):
        lfm.tl.fit(adata, 3, engine="pyro", checkpoint=tmp_path / "fit")


def test_a_checkpoint_that_cannot_be_written_ends_no_fit(writes, monkeypatch, tmp_path):
    case, whole, kept = CASES["normal"], CASES["normal"].data(), CASES["normal"].data()
    case.fit(whole)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="could not be written .*No space left.* the fit goes on without"):
        case.fit(kept, checkpoint=tmp_path / "fit")
    assert_same(whole, kept)
    assert list(tmp_path.iterdir()) == []


def test_writes_take_a_small_share_of_the_time(monkeypatch, tmp_path):
    """By a clock of the test: a write of 3 s is followed by 150 s of work, one of none by a minute."""
    clock, written = [0.0], []
    took = iter([3.0, 3.0, 0.0, 0.0, 0.0])

    def write(*_):
        written.append(clock[0])
        clock[0] += next(took)

    monkeypatch.setattr(checkpoint, "write_file", write)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    kept = checkpoint.Checkpoint(tmp_path / "fit", {}, 9, None)
    for second in range(400):
        kept.keep(second)
        clock[0] += 1
    assert written == [60.0, 213.0, 366.0]


PROGRAM = """
import sys, time
import scvi_lfm as lfm
from scvi_lfm.inference import checkpoint
from scvi_lfm.inference.counts.state import Cells
checkpoint.EVERY = 0.0
adata = lfm.datasets.simulate(1200, 300, 3, likelihood="negative_binomial", mu=0.5)
print("begun", flush=True)
lfm.tl.fit(adata, 5, batch_size=200, max_epochs=12, tol=1e-9, progress=False, checkpoint=sys.argv[1] or None)
adata.write_h5ad(sys.argv[2])
"""


def stamp(path):
    """What differs after each write: a write puts a new file in the place of the old one."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment(tmp_path):
    """After some writes and a moment, so that a kill meets the next write, which is never far, or what is between."""
    (tmp_path / "program.py").write_text(PROGRAM)
    rng, path, killed = np.random.default_rng(0), tmp_path / "fit", 0

    def begun(checkpoint_, out):
        command = [sys.executable, "-W", "ignore", str(tmp_path / "program.py"), str(checkpoint_), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        return process

    with begun("", tmp_path / "whole.h5ad") as process:
        assert process.wait() == 0
    for _ in range(20):
        with begun(path, tmp_path / "kept.h5ad") as process:
            for _ in range(rng.integers(4)):
                before = stamp(path)
                while process.poll() is None and stamp(path) == before:
                    time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            killed += process.wait() != 0
    assert path.exists()
    assert killed > 5
    with begun(path, tmp_path / "kept.h5ad") as process:
        assert process.wait() == 0
    assert_same(ad.read_h5ad(tmp_path / "whole.h5ad"), ad.read_h5ad(tmp_path / "kept.h5ad"))
