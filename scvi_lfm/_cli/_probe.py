"""Whether HDF5 gets through a file: on a damaged one it may crash the process, or never end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING

from ._messages import CommandError

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

_SECONDS, _BYTES_PER_SECOND = 5, 20e6
_ROWS = 100_000
_SMALL = 2**20


def check_survives(path: Path) -> None:
    """Raise if HDF5 crashes on a file, or takes far longer than it could need, seen in a process of its own.

    That process reads names, attributes, strings and small arrays, which is where it follows pointers; what else is
    wrong with a file is left to its reader to tell.
    """
    if sys.platform != "linux":
        return
    seconds = int(_SECONDS + path.stat().st_size / _BYTES_PER_SECOND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of others are no matter: the process does nothing but this
        number = os.fork()
    if number == 0:
        try:
            _walk(path, seconds)
        finally:
            os._exit(0)
    try:
        _, status = os.waitpid(number, 0)
    except BaseException:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        raise
    if os.WIFSIGNALED(status):
        what = "never ends" if os.WTERMSIG(status) == signal.SIGXCPU else "crashes"
        msg = f"cannot read {path} as h5ad: it is damaged, HDF5 {what} on it. Make it again, or take another copy"
        raise CommandError(msg)


def _walk(path: Path, seconds: int) -> None:
    import resource

    import h5py

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with h5py.File(path) as file:
        _read(file)


def _read(part: h5py.Group | h5py.Dataset) -> None:
    import h5py

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
