"""Signals that ask the process to end, as exceptions, which wait while files are written and moved."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# what each is by default: handlers of others, and signals that are ignored (nohup), are left alone
_DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    """Signals arrive at the process, so there is one."""

    arrived: int | None = None
    held = 0


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` where SIGINT, SIGTERM or SIGHUP arrives, and at the end if a library has swallowed it."""
    _State.arrived, _State.held = None, 0
    unraisable, handlers = sys.unraisablehook, {}

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            unraisable(lost)

    try:
        sys.unraisablehook = hook
        for number, default in ((getattr(signal, name, None), default) for name, default in _DEFAULTS.items()):
            if number is not None and signal.getsignal(number) is default:
                try:
                    handlers[number] = signal.signal(number, _arrive)
                except ValueError:  # only the main thread is told of signals
                    break
        yield
        check()
    except Exception as error:
        # what a library makes of an exception in its midst may be anything
        if _State.arrived is not None:
            raise Stopped(_State.arrived) from error
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = unraisable


@contextmanager
def held() -> Iterator[None]:
    """Let signals wait for the end of the block."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if not _State.held:
            check()


@contextmanager
def released() -> Iterator[None]:
    """Inside of :func:`held`: let signals act at once."""
    depth, _State.held = _State.held, 0
    try:
        check()
        yield
    finally:
        _State.held = depth


def check() -> None:
    """Raise `Stopped` if a signal has arrived."""
    if _State.arrived is not None:
        raise Stopped(_State.arrived)


def _arrive(number: int, frame: FrameType | None) -> None:
    _State.arrived = number
    if not _State.held:
        raise Stopped(number)
