"""Whether HDF5 gets through a file: on a damaged one, or without memory, it may crash the process, or never end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from .._memory import OutOfMemoryError
from ._messages import CommandError
from ._signals import held

_SECONDS, _BYTES_PER_SECOND = 5, 20e6
_SCRIPT = Path(__file__).with_name("_walk.py")
_CRASHES = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV"}
_OTHER_COPY = "Make it again, or take another copy"


def check_survives(path: Path) -> None:
    """Raise if HDF5 crashes on a file, or takes far longer than it could need, seen in a process of its own.

    That process reads names, attributes, strings and small arrays, which is where it follows pointers; what else is
    wrong with a file is left to its reader to tell.
    """
    if sys.platform != "linux":
        return
    seconds = int(_SECONDS + path.stat().st_size / _BYTES_PER_SECOND)
    ended_by = _signal_of_fork(path, seconds)
    if not ended_by:
        return
    cannot = f"cannot read {path} as h5ad"
    if ended_by == "SIGKILL":
        msg = (
            f"There is not enough memory to read {path}, or somebody else had a reason to kill the process that read "
            "it: it ended by SIGKILL, as where a machine or a job has used up its memory. Close other programs, or ask "
            "for more memory"
        )
        raise OutOfMemoryError(msg)
    if ended_by == "SIGXCPU":
        msg = f"{cannot}: it is damaged, HDF5 never ends on it. {_OTHER_COPY}"
        raise CommandError(msg)
    if ended_by not in _CRASHES:
        msg = f"{cannot}: {ended_by} ended the process that read it. Run the command again"
        raise CommandError(msg)
    limit = _limit_of_memory()
    if not limit:
        msg = f"{cannot}: it is damaged, HDF5 crashes on it. {_OTHER_COPY}"
        raise CommandError(msg)
    if _signal_of_script(path, seconds) not in _CRASHES:
        msg = (
            f"There is not enough memory to read {path}: {limit}. Raise that limit, or pass less: fewer cells or genes"
        )
        raise OutOfMemoryError(msg)
    msg = (
        f"{cannot}: HDF5 crashes on it, either because it is damaged or because there is too little memory: {limit}. "
        f"Raise that limit; if that does not help, the file is damaged. {_OTHER_COPY}"
    )
    raise CommandError(msg)


def _signal_of_fork(path: Path, seconds: int) -> str:
    """Name of the signal that ends a copy of this process as it walks through a file; empty where none does."""
    from ._walk import walk

    number = 0
    try:
        # an exception among what Python does around a fork is lost, and a lock of others would stay locked
        with held(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # threads of others are no matter: the process does nothing but this
            number = os.fork()
            if number == 0:
                try:
                    walk(str(path), seconds)
                finally:
                    os._exit(0)
        _, status = os.waitpid(number, 0)
    except BaseException:
        if number:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
        raise
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""


def _signal_of_script(path: Path, seconds: int) -> str:
    """The same of a process without the imports of this one, to which the limits leave more memory."""
    command = [sys.executable, "-P", str(_SCRIPT), str(path), str(seconds)]
    nowhere = subprocess.DEVNULL
    status = subprocess.run(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, check=False).returncode
    return signal.Signals(-status).name if status < 0 else ""


def _limit_of_memory() -> str:
    """What keeps memory from this process, in words; empty where nothing but the machine's size does."""
    import resource

    for number, option in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        most, _ = resource.getrlimit(number)
        if most != resource.RLIM_INFINITY:
            return f"this process may take {most / 1e6:.0f} MB ({option} is {most // 1024})"
    accounting = Path("/proc/sys/vm/overcommit_memory")
    if accounting.exists() and accounting.read_text().strip() == "2":
        return "the system promises no more than it has (vm.overcommit_memory is 2)"
    return ""
