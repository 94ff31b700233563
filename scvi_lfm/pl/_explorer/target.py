"""The file that a page is written to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._output import check_place, whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIXES = (".html", ".htm")
MARK = b'<meta name="generator" content="scvi_lfm explorer">'
HEAD = 1_000  # bytes in which a page has its mark


def check_target(path: object, *, overwrite: bool) -> Path:
    """The place of a page, absolute; raise unless one may be written there."""
    if not isinstance(path, str | os.PathLike):
        msg = f"`path` must be the name of a file, found {path!r}."
        raise TypeError(msg)
    target = Path(os.fspath(path)).expanduser()
    if target.suffix.lower() not in SUFFIXES:
        msg = f"`path` must end in .html, so that a browser opens it, found {str(path)!r}."
        raise ValueError(msg)
    check_place("path", target)
    target = Path(os.path.realpath(target))
    if target.exists() and not overwrite and not _is_page(target):
        msg = (
            f"`path`: {str(target)!r} exists and is no page of lfm.pl.explorer. Name another file, or pass "
            "overwrite=True to replace it."
        )
        raise ValueError(msg)
    return target


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK in file.read(HEAD)


def write_whole(target: Path, parts: Iterable[bytes]) -> int:
    """Write a file that appears once it is whole, and replaces what was there; its bytes."""
    with whole_file("path", target) as draft, draft.open("wb") as file:
        for part in parts:
            file.write(part)
        return file.tell()
