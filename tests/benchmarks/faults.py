"""Nothing is lost: processes killed, disks that fill, damaged files, memory that runs out, and what was left.

    python tests/benchmarks/faults.py [--kills 500] [--signals 50] [--disks 50] [--damaged 100] [--memory 50]
        [--seed 0] [--folder FOLDER]

Numbers are trials for each format or command; 0 leaves a part out. Linux only: trials are forked from this process,
which imports everything first. A disk that fills needs the right to mount a small tmpfs, which root has. Ends with
status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

# everything that a trial needs, so that a forked process has it
import anndata  # noqa: F401
import faults_files
import faults_kills
import faults_rooms
import h5py  # noqa: F401
import scanpy  # noqa: F401
import zarr  # noqa: F401

import scvi_lfm._cli._commands
import scvi_lfm._cli._demo
import scvi_lfm.tl  # noqa: F401

if TYPE_CHECKING:
    from collections import Counter

FORMATS = ("h5ad", "zarr")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--disks", type=int, default=50)
    parser.add_argument("--damaged", type=int, default=100)
    parser.add_argument("--memory", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        faults_kills.make_data(folder)
        for which, trials in (
            (signal.SIGKILL, args.kills),
            (signal.SIGTERM, args.signals),
            (signal.SIGINT, args.signals),
        ):
            for suffix in FORMATS if trials else ():
                begun = time.perf_counter()
                found = faults_kills.kill(folder, trials, which, suffix, random.Random(args.seed))
                faults += report(f"{which.name}, {suffix}", trials, found, time.perf_counter() - begun)
        for what, work, trials in (
            ("disk", faults_rooms.fill, args.disks),
            ("damaged", faults_files.spoil, args.damaged),
        ):
            for suffix in FORMATS if trials else ():
                begun = time.perf_counter()
                found = work(folder, trials, suffix, random.Random(args.seed))
                faults += report(f"{what}, {suffix}", trials, found, time.perf_counter() - begun)
        larger = folder / "larger"
        larger.mkdir()
        faults_kills.make_data(larger, 1000, 500)
        for command in faults_rooms.COMMANDS if args.memory else ():
            begun = time.perf_counter()
            found = faults_rooms.starve(larger, args.memory, command, random.Random(args.seed))
            faults += report(f"memory, {command}", args.memory, found, time.perf_counter() - begun)
    return 1 if faults else 0


def report(name: str, trials: int, found: Counter, seconds: float) -> int:
    """Print one row, and return the number of faults."""
    words = ", ".join(f"{outcome} {count}" for outcome, count in sorted(found.items()))
    print(f"| {name} | {trials} | {words} | {seconds:.0f} s |", flush=True)
    return sum(count for outcome, count in found.items() if outcome.startswith("FAULT"))


if __name__ == "__main__":
    sys.exit(main())
