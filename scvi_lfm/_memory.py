"""One error where memory runs out, whoever noticed: numpy raises a MemoryError, torch, MKL and HDF5 others."""

from __future__ import annotations

from contextlib import contextmanager
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
