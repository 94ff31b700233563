"""Copies of files and folders that the file system makes, without reading what they mean."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from ._signals import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PIECE = 2**26
# small files of a zarr store that say what it holds: a writer may write into them
_METADATA = frozenset({"zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata"})

Stamp = tuple[tuple[str, int, int, int], ...]


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that is in it; file systems that know how to share blocks between files do."""
    if source.is_dir():
        _copy_folder(source, target, _copy_file)
    else:
        _copy_file(source, target)


def link(source: Path, target: Path) -> None:
    """A second folder with the same files of a zarr store: links to them, and copies of what says what it holds.

    Files are copied where the file system has no links.
    """
    _copy_folder(source, target, _link_file)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(n_bytes for _, n_bytes, *_ in stamp(path))


def stamp(path: Path) -> Stamp:
    """Name, size, time of the last change and number of every file, to know later whether one was changed."""
    found = []
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        of = part.stat()
        if not part.is_dir():
            found.append((str(part.relative_to(path)), of.st_size, of.st_mtime_ns, of.st_ino))
    return tuple(found)


def _copy_folder(source: Path, target: Path, copy_file: Callable[[Path, Path], None]) -> None:
    """A folder with what `copy_file` makes of its files; the first error ends it, where shutil gathers them all."""
    target.mkdir()
    for part in source.iterdir():
        if part.is_dir():
            _copy_folder(part, target / part.name, copy_file)
        else:
            copy_file(part, target / part.name)
    shutil.copystat(source, target)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        if not _copied_by_the_system(old.fileno(), new.fileno()):
            while piece := memoryview(old.read(_PIECE)):
                while piece:
                    piece = piece[new.write(piece) :]
                check()


def _copied_by_the_system(old: int, new: int) -> bool:
    """Whether the system copied a file without handing its bytes to this process; nothing is copied where not."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    try:
        while copied := os.copy_file_range(old, new, _PIECE):
            done += copied
            check()
    except OSError:
        if done:  # the disk is full, say
            raise
        return False
    return done > 0


def _link_file(source: Path, target: Path) -> None:
    if source.name in _METADATA:
        _copy_file(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        _copy_file(source, target)
    check()
