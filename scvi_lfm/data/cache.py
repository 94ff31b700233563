"""The last few pieces of something, kept for who asks next."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Piece = TypeVar("Piece")


class Cache(Generic[Piece]):
    """The last `count` pieces, each computed once by the first of those who ask for it at the same time."""

    def __init__(self, compute: Callable[[int], Piece], count: int) -> None:
        self._compute, self._count, self._guard = compute, count, threading.Lock()
        self._entries: dict[int, _Entry[Piece]] = {}  # the latest last

    def get(self, number: int) -> Piece:
        """A piece, kept or computed."""
        with self._guard:
            entry = self._entries.pop(number, None) or _Entry()
            self._entries[number] = entry
            for oldest in list(self._entries)[: -self._count]:
                del self._entries[oldest]
        with entry.guard:
            if entry.piece is None:
                entry.piece = self._compute(number)
            return entry.piece


class _Entry(Generic[Piece]):
    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.piece: Piece | None = None
