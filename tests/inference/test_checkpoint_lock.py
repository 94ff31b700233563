"""Two fits never work on one checkpoint; what a killed one leaves stops nobody; seconds and settings of calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm.inference import checkpoint, checkpoint_lock
from scvi_lfm.inference.checkpoint_lock import CheckpointLock, check_not_taken, lock_path

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.filterwarnings("ignore:The fit did not converge")

HOLD = """
import sys
from pathlib import Path
from scvi_lfm.inference.checkpoint_lock import CheckpointLock
CheckpointLock(Path(sys.argv[1])).take()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def data():
    return lfm.datasets.simulate(60, 30, 2, likelihood="negative_binomial", mu=1.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit"


def fit(adata, path, **options):
    adata = adata.copy()
    given = {"batch_size": 30, "max_epochs": 2, "tol": 1e-9, "progress": False, "likelihood": "poisson"}
    lfm.tl.fit(adata, 2, checkpoint=path, **(given | options))
    return adata


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_gone(data, path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "taken\n"
        words = rf"{path.name}' belongs to a fit that is running, in process {other.pid} on .*another path"
        with pytest.raises(ValueError, match=words):
            fit(data, path)
        with pytest.raises(ValueError, match=words):
            CheckpointLock(path).take()
        assert not path.exists()
        other.kill()  # as an OOM killer would: nothing is tidied up
        other.wait()
    assert lock_path(path).exists()
    fit(data, path)
    assert path.exists()
    assert not lock_path(path).exists()


def test_a_second_fit_of_this_process_is_refused(data, path):
    lock = CheckpointLock(path)
    lock.take()
    with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
        fit(data, path)
    lock.give_back()
    lock.give_back()
    fit(data, path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_lock_is_left_alone(data, path, kind):
    there = lock_path(path)
    there.mkdir() if kind == "folder" else there.write_text("mine")
    with pytest.raises(ValueError, match="there is something else. Pass another path"):
        fit(data, path)
    with pytest.raises(ValueError, match="there is something else"):
        CheckpointLock(path).take()
    assert there.is_dir() if kind == "folder" else there.read_text() == "mine"
    assert list(path.parent.iterdir()) == [there]


def test_an_empty_lock_of_a_process_that_was_killed_is_taken_over(path):
    lock_path(path).touch()
    lock = CheckpointLock(path)
    lock.take()
    lock.give_back()
    assert not lock_path(path).exists()


def test_names_of_one_file_share_a_lock(path):
    path.touch()
    link = path.with_name("link")
    link.symlink_to(path)
    lock = CheckpointLock(link)
    lock.take()
    with pytest.raises(ValueError, match="belongs to a fit"):
        check_not_taken(path)
    lock.give_back()
    check_not_taken(path)


def test_a_lock_that_was_removed_before_it_was_taken_is_taken_anew(path, monkeypatch):
    """Who had it removes the file: one who has opened it before would lock what nobody else can find."""
    real, calls = checkpoint_lock._locked, []

    def locked(file):
        if not calls:
            lock_path(path).unlink()
        calls.append(file)
        return real(file)

    monkeypatch.setattr(checkpoint_lock, "_locked", locked)
    lock = CheckpointLock(path)
    lock.take()
    assert len(calls) == 2
    with pytest.raises(ValueError, match="belongs to a fit"):
        CheckpointLock(path).take()
    lock.give_back()


@pytest.mark.parametrize("without", ["module", "file system"])
def test_where_there_are_no_locks_a_fit_goes_on(data, path, monkeypatch, without):
    if without == "module":
        monkeypatch.setattr(checkpoint_lock, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
    fit(data, path)
    assert path.exists()


def test_an_error_gives_the_lock_back(data, path):
    fit(data, path)
    with pytest.raises(ValueError, match="differs in: tol"):
        fit(data, path, tol=0.1)
    assert not lock_path(path).exists()


def test_seconds_are_those_of_all_calls(data, path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    real, written = checkpoint.write_file, []

    def write(path, mark, course, seconds):
        written.append(seconds)
        real(path, mark, course, seconds + 1000)  # as if this call had taken so long

    monkeypatch.setattr(checkpoint, "write_file", write)
    first = fit(data, path).uns["lfm"]["seconds"]
    assert 0 < written[0] <= written[-1] <= first < 500
    again = fit(data, path).uns["lfm"]["seconds"]
    assert 1000 + written[-1] < again < 1500
    assert 1000 + written[-1] < fit(data, path, max_epochs=3).uns["lfm"]["seconds"] < 1500
    # the third call has written what the first two took, and its own time
    assert 2000 < fit(data, path, max_epochs=3).uns["lfm"]["seconds"] < 2500


def test_a_checkpoint_of_another_setting_of_covariances_is_refused(data, path, monkeypatch):
    whole = fit(data, path)
    kept = Path(path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(lfm.settings, "max_cov_bytes", 100)
        with pytest.raises(ValueError, match=r"settings.max_cov_bytes, \(was held, is computed when needed\)"):
            fit(data, path)
    assert Path(path).read_bytes() == kept
    # another number by which they are held all the same changes nothing
    monkeypatch.setattr(lfm.settings, "max_cov_bytes", 2 * lfm.settings.max_cov_bytes)
    np.testing.assert_array_equal(fit(data, path).obsm["X_lfm"], whole.obsm["X_lfm"])
