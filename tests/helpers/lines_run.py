"""Ctrl-C at a given line of Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def lines_run(
    call: Callable[[], object], counts: Callable[[FrameType, str], bool | None], line: int | None = None
) -> int:
    """Raise KeyboardInterrupt at that line of those that count; the number of them that ran.

    `counts` is asked of the events of every frame; None lets a frame run untraced.
    """
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable | None:
        nonlocal lines
        counted = counts(frame, event)
        if counted is None:
            return None
        lines += counted
        if counted and lines == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines
