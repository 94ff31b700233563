"""A new file is written in a hidden folder beside its place, and moved there once it is whole."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from .._memory import is_out_of_memory, naming_memory
from ._messages import CommandError, one_line
from ._signals import check, held, released

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows: folders that ended processes left are not taken away there
    fcntl = None  # type: ignore[assignment]

_HIDDEN = ".scvi-lfm"
_REPLACED = "replaced"
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Draft:
    """Where to write, and what it will be."""

    path: Path
    target: Path


@contextmanager
def new_file(path: Path, suffixes: tuple[str, ...]) -> Iterator[Draft]:
    """A place to write to; what is there in the end replaces `path` in one step, unless an error or a signal comes.

    That the file can be written is checked on entry, before any work.
    """
    suffix = check_suffix(path, suffixes)
    target = path.resolve()
    _check_target(path, target, suffix)
    with held(), _hidden_folder(path, target) as folder:
        draft = Draft(folder / f"draft{suffix}", path)
        with writing(draft):  # a full disk has room for the folder, and for nothing in it
            draft.path.write_bytes(bytes(4096))
            draft.path.unlink()
        with released():
            yield draft
        check()
        with writing(draft):
            _flush(draft.path)
            _move(draft.path, target)


@contextmanager
def writing(draft: Draft) -> Iterator[None]:
    """Let signals wait, and name the file where it cannot be written."""
    with held(), naming_memory(f"write {draft.target}"):
        try:
            yield
        except OSError as error:
            if is_out_of_memory(error):
                raise
            reason = one_line(OSError(error.errno, error.strerror) if error.strerror else error)
            if error.errno == errno.ENOSPC:
                free = shutil.disk_usage(draft.path.parent).free
                reason += f", {free / 1e6:,.1f} MB are free"
            msg = f"cannot write {draft.target}: {reason}. What was there is as it was."
            raise OSError(error.errno, msg) from error


def check_suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    """The suffix of a file, which must be one of those."""
    if path.suffix not in suffixes:
        msg = f"{path} must end in {' or '.join(suffixes)}"
        raise CommandError(msg)
    return path.suffix


def _check_target(path: Path, target: Path, suffix: str) -> None:
    reason = None
    if not target.parent.is_dir():
        reason = f"there is no folder {target.parent}"
    elif suffix == ".zarr" and target.is_dir():
        # only a store of the same kind may be replaced as a whole
        if not any((target / marker).exists() for marker in (".zgroup", "zarr.json")):
            reason = "there is a folder of that name that holds something else"
    elif target.exists() and not target.is_file():
        reason = "there is something of that name that is not a file"
    elif target.exists() and suffix == ".zarr":
        reason = "there is a file of that name"
    if reason is None and target.exists() and not os.access(target, os.W_OK):
        reason = "no permission to replace it"
    if reason is not None:
        msg = f"cannot write {path}: {reason}"
        raise CommandError(msg)


@contextmanager
def _hidden_folder(path: Path, target: Path) -> Iterator[Path]:
    """A folder beside `target`, locked while it is in use; what processes left that were killed is taken away."""
    _take_away_leftovers(target)
    try:
        while True:
            folder = Path(mkdtemp(prefix=f".{target.name}.", suffix=_HIDDEN, dir=target.parent))
            lock = _lock(folder, wait=True)
            if folder.exists():  # else another process took it for a leftover before it was locked
                break
            _unlock(lock)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise (CommandError(msg) if error.errno in _NO_PERMISSION else OSError(error.errno, msg)) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _take_away_leftovers(target: Path) -> None:
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*{_HIDDEN}"):
        lock = _lock(folder, wait=False)
        if lock is None:
            continue
        if (folder / _REPLACED).exists() and not target.exists():
            (folder / _REPLACED).rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder until the descriptor is closed, or the process ends; None if another holds it, or it cannot be."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _unlock(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _move(draft: Path, target: Path) -> None:
    if not target.is_dir():
        draft.replace(target)
    elif not _exchange(draft, target):
        replaced = draft.with_name(_REPLACED)
        target.rename(replaced)
        try:
            draft.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
    _flush(target.parent, inside=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, where the system and the disk know how to."""
    if os.name != "posix":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _flush(path: Path, *, inside: bool = True) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if os.name != "posix":
        return
    for part in [*(path.rglob("*") if inside and path.is_dir() else ()), path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
