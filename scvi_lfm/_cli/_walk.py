"""All that HDF5 follows pointers for in a file, in a process that may crash; also a script, which imports only h5py."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys

import h5py

_ROWS = 100_000
_SMALL = 2**20


def walk(path: str, seconds: int) -> None:
    """Read names, attributes, strings and small arrays of a file, silently and in so many seconds of the processor."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with h5py.File(path) as file:
        _read(file)


def _read(part: h5py.Group | h5py.Dataset) -> None:
    # the reader has words for errors; here the rest is to be seen in spite of them
    with contextlib.suppress(Exception):
        for name in part.attrs:
            with contextlib.suppress(Exception):
                part.attrs[name]
    if isinstance(part, h5py.Dataset):
        with contextlib.suppress(Exception):
            if part.ndim == 0 or part.nbytes <= _SMALL:
                part[()]
            elif part.dtype.kind == "O":
                for start in range(0, len(part), _ROWS):
                    part[start : start + _ROWS]
        return
    with contextlib.suppress(Exception):
        for name in part:
            with contextlib.suppress(Exception):
                _read(part[name])


if __name__ == "__main__":
    walk(sys.argv[1], int(sys.argv[2]))
