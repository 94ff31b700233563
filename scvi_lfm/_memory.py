"""One error where memory runs out, whoever noticed: numpy raises a MemoryError, torch, MKL and HDF5 others."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORDS = (
    "can't allocate memory",  # torch
    "cannot allocate memory",  # the system
    "out of memory",  # CUDA
    "bad_alloc",  # C++
    "alloc_failed",  # MKL
    "memory allocation failed",  # HDF5
)
LESS = "Close other programs or pass less: fewer cells or genes"


class OutOfMemoryError(MemoryError):
    """Memory ran out, and the message says in what and what to do."""


@contextmanager
def naming_memory(what: str, remedy: str = LESS) -> Iterator[None]:
    """Raise a MemoryError that says what was done, and what to do, where memory runs out; also a decorator."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        detail = " ".join(str(error).split())
        msg = f"There is not enough memory to {what}. {remedy}. {f'({detail})' if detail else ''}".strip()
        raise OutOfMemoryError(msg) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)


def available_bytes() -> int | None:
    """Main memory that this process may still take, of the machine and of its control groups; None if unknown."""
    found = [part for part in (_of_machine(), *_of_groups()) if part is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    fields = _fields(Path("/proc/meminfo"))
    return None if "MemAvailable:" not in fields else fields["MemAvailable:"] * 1024


def _of_groups() -> Iterator[int | None]:
    """What each control group around the process has left; pages of files that it can drop count as left."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        second = not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") if second else Path("/sys/fs/cgroup/memory")
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        within = Path(path.lstrip("/"))
        for group in (root / within, *(root / parent for parent in within.parents)):
            most, used = (_text(group / name).strip() for name in names)
            if most.isdecimal() and used.isdecimal():
                dropped = _fields(group / "memory.stat").get("inactive_file" if second else "total_inactive_file", 0)
                yield int(most) - int(used) + dropped


def _fields(path: Path) -> dict[str, int]:
    words = (line.split() for line in _text(path).splitlines())
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1 and parts[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def words_of_bytes(n_bytes: float) -> str:
    """A number of bytes in words, such as `1.5 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.{0 if n_bytes >= 100 * size else 1}f} {unit}"
    return f"{n_bytes / 1e3:,.0f} kB"
