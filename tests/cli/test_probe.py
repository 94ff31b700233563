"""A crash of HDF5 is put down to the file only where memory cannot be the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scvi_lfm._cli import _files as files
from scvi_lfm._cli import _probe as probe
from scvi_lfm._cli import main
from scvi_lfm._cli._signals import Stopped, stoppable

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are tried in a process of their own on Linux")
CRASHES = sorted(probe._CRASHES)
NO_MEMORY = "scvi-lfm: error: There is not enough memory to read "


@pytest.fixture(autouse=True)
def each_file_is_tried_once():
    """No: here every file is tried each time it is read."""


@pytest.fixture
def limited():
    """A limit of the address space, far above what is taken."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def ended_by(monkeypatch: pytest.MonkeyPatch):
    """What lets the copy of this process end by a signal."""

    def end(name: str) -> None:
        def walk(path: str, seconds: int) -> None:
            if name != "SIGKILL":
                signal.signal(signal.Signals[name], signal.SIG_DFL)
            os.kill(os.getpid(), signal.Signals[name])

        monkeypatch.setattr("scvi_lfm._cli._walk.walk", walk)

    return end


def crashing_script(folder: Path, name: str) -> Path:
    path = folder / "crashes.py"
    lines = [
        "import os, signal",
        f"signal.signal(signal.{name}, signal.SIG_DFL)",
        f"os.kill(os.getpid(), signal.{name})",
    ]
    path.write_text("\n".join(lines))
    return path


def outcome(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["fit", str(folder / "data.h5ad"), str(out), "--n-factors", "2"])
    (line,) = capsys.readouterr().err.splitlines()
    assert not out.exists()
    return status, line


@pytest.mark.parametrize("name", CRASHES)
def test_without_a_limit_a_crash_is_the_file_s(folder, tmp_path, name, ended_by, monkeypatch, capsys):
    monkeypatch.setattr(probe, "_limit_of_memory", lambda: "")
    ended_by(name)
    status, line = outcome(folder, tmp_path / "out.h5ad", capsys)
    assert status == 2
    assert f"cannot read {folder / 'data.h5ad'} as h5ad: it is damaged, HDF5 crashes on it." in line


@pytest.mark.parametrize("name", CRASHES)
@pytest.mark.usefixtures("limited")
def test_with_a_limit_and_a_whole_file_memory_ran_out(folder, tmp_path, name, ended_by, capsys):
    ended_by(name)
    status, line = outcome(folder, tmp_path / "out.h5ad", capsys)
    assert status == 1
    assert line.startswith(f"{NO_MEMORY}{folder / 'data.h5ad'}: ")
    assert f"{2**40 / 1e6:.0f} MB (ulimit -v is {2**30})" in line
    assert "damaged" not in line


@pytest.mark.usefixtures("limited")
def test_with_a_limit_and_a_file_that_crashes_elsewhere_too_both_are_named(
    folder, tmp_path, ended_by, monkeypatch, capsys
):
    ended_by("SIGSEGV")
    monkeypatch.setattr(probe, "_SCRIPT", crashing_script(tmp_path, "SIGABRT"))
    status, line = outcome(folder, tmp_path / "out.h5ad", capsys)
    assert status == 2
    assert "either because it is damaged or because there is too little memory" in line
    assert "ulimit -v" in line


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("SIGKILL", 1, NO_MEMORY),
        ("SIGXCPU", 2, "it is damaged, HDF5 never ends on it"),
        ("SIGTERM", 2, "SIGTERM ended the process that read it"),
    ],
)
def test_other_ends(folder, tmp_path, name, expected, words, ended_by, capsys):
    ended_by(name)
    status, line = outcome(folder, tmp_path / "out.h5ad", capsys)
    assert status == expected
    assert words in line


def test_a_signal_in_the_midst_of_a_fork_waits_for_its_end(folder, monkeypatch):
    """Python swallows exceptions in what it does around a fork, such as to take and give back the lock of logging."""
    fork, numbers = os.fork, []

    def signalled():
        signal.raise_signal(signal.SIGTERM)
        numbers.append(fork())
        return numbers[-1]

    monkeypatch.setattr(probe.os, "fork", signalled)
    with pytest.raises(Stopped), stoppable():
        probe.check_survives(folder / "fitted.h5ad")
    with pytest.raises(ChildProcessError):
        os.waitpid(numbers[0], 0)


def test_the_limit_is_named(monkeypatch):
    import resource

    limits = {resource.RLIMIT_DATA: 10**9}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, resource.RLIM_INFINITY), 0))
    assert probe._limit_of_memory() == "this process may take 1000 MB (ulimit -d is 976562)"


def test_the_script_walks_a_whole_file_in_silence(folder):
    command = [sys.executable, "-P", str(probe._SCRIPT), str(folder / "fitted.h5ad"), "60"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("error", [KeyError, ValueError, RuntimeError])
def test_memory_that_hdf5_lacks_is_named_whatever_h5py_raises(folder, tmp_path, error, monkeypatch, capsys):
    def read(part: h5py.Group) -> None:
        msg = "Unable to synchronously open object (memory allocation failed)"
        raise error(msg)

    monkeypatch.setattr("anndata.io.read_elem", read)
    monkeypatch.setattr(files, "check_survives", lambda path: None)
    status, line = outcome(folder, tmp_path / "out.h5ad", capsys)
    assert status == 1
    assert line.startswith(f"{NO_MEMORY}{folder / 'data.h5ad'}.")


LITTLE = """
import os, resource, sys
import anndata, h5py, scanpy, zarr
import scvi_lfm._cli._walk, scvi_lfm.tl
from scvi_lfm._cli import _commands, main
for extra in range(0, 3_000_000, 50_000):
    if os.fork() == 0:
        with open("/proc/self/statm") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os._exit(main(["rank", sys.argv[1], "--mask", "chosen", "--out", sys.argv[2]]))
    os.wait()
"""


@pytest.mark.slow
def test_with_little_memory_no_file_is_called_damaged(folder, tmp_path):
    command = [sys.executable, "-c", LITTLE, str(folder / "fitted.h5ad"), str(tmp_path / "out.h5ad")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()
    assert sum(line.startswith(NO_MEMORY) for line in said) > 10
    # what is read is whole: no crash may be put down to it
    assert not [line for line in said if "it is damaged" in line or "either because" in line]
