"""Room that runs out: a disk that fills while a command writes, and memory that ends while it works."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from faults_trials import Ended, command, fingerprint, hidden, in_child

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

DISK = 4 * 2**20
FULL = r"scvi-lfm: error: cannot write {out}: (No space left on device|no room on its disk), [^\n]* are free[^\n]*"
MEMORY = r"scvi-lfm: error: There is not enough memory to [^\n]+"
COMMANDS = ("fit", "rank", "anomalies", "project")


def arguments_of(name: str, folder: Path, out: Path, suffix: str) -> list[object]:
    """A command that writes `out`."""
    fitted, data = folder / f"fitted.{suffix}", folder / f"data.{suffix}"
    return {
        "fit": ["fit", data, out, "--n-factors", 2, "--max-epochs", 5, "--tol", 1e9],
        "rank": ["rank", fitted, "--mask", "chosen", "--out", out],
        "anomalies": ["anomalies", fitted, "--out", out],
        "project": ["project", data, fitted, out],
    }[name]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system in memory of a few MB."""
    place = folder / "disk"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(folder: Path, trials: int, suffix: str, rng: random.Random) -> Counter:
    """Run the commands in turn on a disk with too little room for what they write, or just enough."""
    found: Counter = Counter()
    with small_disk(folder) as disk:
        out, filler, old = disk / f"out.{suffix}", disk / "filler", folder / f"old_output.{suffix}"
        sizes = {}
        for name in COMMANDS:
            free = shutil.disk_usage(disk).free
            in_child(command(*arguments_of(name, folder, out, suffix)))
            sizes[name] = free - shutil.disk_usage(disk).free
            if name == "fit":
                (shutil.copytree if out.is_dir() else shutil.copy)(out, old)
            _remove(out)
        of_old = fingerprint(old)
        for trial in range(trials):
            name = COMMANDS[trial % len(COMMANDS)]
            _remove(out)
            filler.unlink(missing_ok=True)
            if trial // 4 % 2:
                (shutil.copytree if old.is_dir() else shutil.copy)(old, out)
            free = int(rng.uniform(0, 1.1) * sizes[name])
            filler.write_bytes(bytes(max(shutil.disk_usage(disk).free - free, 0)))
            ended = in_child(command(*arguments_of(name, folder, out, suffix)))
            kept = fingerprint(out) == (of_old if trial // 4 % 2 else "")
            if ended.status == 0 and not kept:
                outcome = "room enough"
            elif ended.status == 1 and kept and _says(ended, FULL.format(out=re.escape(str(out)))):
                outcome = "error, output as before"
            else:
                outcome = "FAULT"
            if hidden(disk):
                outcome = "FAULT: something left"
            if outcome.startswith("FAULT"):
                print(f"disk {name} {suffix} {free}: {outcome}, kept {kept}, {ended}", flush=True)
            found[outcome] += 1
    return found


def starve(folder: Path, trials: int, name: str, rng: random.Random) -> Counter:
    """Run a command with too little memory, or just enough.

    `folder` holds data of another size than those that are killed: most of the memory is to be taken by the work.
    """
    found: Counter = Counter()
    out = folder / "starved.h5ad"
    arguments = arguments_of(name, folder, out, "h5ad")
    most = _memory_taken(arguments)
    print(f"{name} takes {most / 1e6:.1f} MB", flush=True)
    for _ in range(trials):
        _remove(out)
        extra = int(rng.uniform(0, 1.1) * most)

        def limited(extra: int = extra) -> int:
            limit = _address_space() + extra
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            return command(*arguments)()

        ended = in_child(limited)
        if ended.status == 0 and out.exists():
            outcome = "memory enough"
        elif ended.status == 1 and not out.exists() and _says(ended, MEMORY):
            outcome = "error, nothing written"
        else:
            outcome = "FAULT"
        if hidden(folder):
            outcome = "FAULT: something left"
            shutil.rmtree(hidden(folder)[0])
        if outcome.startswith("FAULT"):
            print(f"memory {name} {extra}: {outcome}, {ended}", flush=True)
        found[outcome] += 1
    _remove(out)
    return found


def _memory_taken(arguments: list[object]) -> int:
    """Least address space, beyond that of this process, with which a command works, within a tenth."""
    low, high = 0, 2**33
    while high - low > 0.1 * high:
        middle = (low + high) // 2

        def limited(extra: int = middle) -> int:
            limit = _address_space() + extra
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            return command(*arguments)()

        low, high = (low, middle) if in_child(limited).status == 0 else (middle, high)
    return high


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _says(ended: Ended, pattern: str) -> bool:
    return len(ended.lines) == 1 and re.fullmatch(pattern, ended.lines[0]) is not None


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
