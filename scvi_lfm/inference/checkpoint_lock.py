"""One fit at a time for a checkpoint: a lock of the operating system, which ends with the process however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # none on Windows: there a checkpoint is not locked
    fcntl = None  # type: ignore[assignment]

LONGEST_NOTE = 200
MARK = b"a fit of scvi_lfm, "


class CheckpointLock:
    """Lock beside a checkpoint, in a file of its own, as the checkpoint is replaced whenever it is written.

    A file that a killed process has left is no lock, and is taken over. Where the system or the file system has no such
    locks, nothing is locked.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint, self._path = checkpoint, lock_path(checkpoint)
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock.

        Raises
        ------
        ValueError
            Another fit has it, or a file of another kind is in its place.
        """
        _check_place(self._path)
        while fcntl is not None and self._file is None:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # it will be said when the checkpoint is written
                return
            try:
                if not _locked(file):
                    raise _taken(self._checkpoint, file)
                if not _is_there(file, self._path):  # who had it has removed it since
                    os.close(file)
                    continue
                os.ftruncate(file, 0)
                os.pwrite(file, MARK + f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            except BaseException:
                os.close(file)
                raise
            self._file = file

    def give_back(self) -> None:
        """Give the lock back, if it was taken."""
        file, self._file = self._file, None
        if file is None:
            return
        # before it is unlocked, so that nobody locks a file that is then removed
        self._path.unlink(missing_ok=True)
        os.close(file)


def check_not_taken(checkpoint: Path) -> None:
    """Raise if a fit is at work on a checkpoint, or its lock could not be made, without taking it.

    Raises
    ------
    ValueError
        So it is.
    """
    if fcntl is None:
        return
    _check_place(lock_path(checkpoint))
    with contextlib.suppress(FileNotFoundError, PermissionError):
        file = os.open(lock_path(checkpoint), os.O_RDWR)
        try:
            if not _locked(file):
                raise _taken(checkpoint, file)
        finally:
            os.close(file)


def lock_path(checkpoint: Path) -> Path:
    """The file that is locked."""
    checkpoint = checkpoint.resolve()  # of a link and of the file it leads to there is one
    return checkpoint.with_name(f"{checkpoint.name}.lock")


def _check_place(path: Path) -> None:
    """Raise if something that is no lock of a fit, and would be lost, is where a lock goes."""
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            note = file.read(len(MARK))
        if note in (b"", MARK):  # a process that was killed at once has left an empty one
            return
    msg = (
        f"`checkpoint`: at {str(path)!r}, where a lock is put while a fit runs and then removed, there is something "
        "else. Pass another path."
    )
    raise ValueError(msg)


def _locked(file: int) -> bool:
    """Whether a file is locked now, or cannot be where it lies."""
    locks: Any = fcntl
    try:
        locks.flock(file, locks.LOCK_EX | locks.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_there(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _taken(checkpoint: Path, file: int) -> ValueError:
    who = os.pread(file, LONGEST_NOTE, 0).removeprefix(MARK).decode(errors="replace") or "another process"
    return ValueError(
        f"The checkpoint {str(checkpoint)!r} belongs to a fit that is running, in {who}. Wait until it ends, or pass "
        "another path as `checkpoint`."
    )
