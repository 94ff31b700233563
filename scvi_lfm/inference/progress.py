"""What work says of itself while it runs: a fit a bar on a terminal or in a notebook, elsewhere all of it by lines."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

# seconds between plain lines
EVERY = 30.0


class Progress:
    """Listener that is told of every minibatch and every epoch; this one says nothing."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        """End, by an error or not."""

    def update(self) -> None:
        """Take note that a minibatch was seen."""

    def epoch(self, number: float, elbo: float, gap: float, epochs_left: float) -> None:
        """Take note of an epoch: epochs over, its ELBO per entry, the share of the gain still missing, epochs left.

        What is left is infinite where nothing tells.
        """

    def end(self, reason: str) -> None:
        """Take note of the reason why the last epoch was the last."""


def show_progress(max_epochs: float, *, shown: bool) -> Progress:
    """Progress on standard error; none unless `shown`, or where there is no standard error."""
    if not shown or sys.stderr is None:
        return Progress()
    return Bar(max_epochs) if _takes_a_bar() else Lines(max_epochs)


def _takes_a_bar() -> bool:
    # a notebook's standard error is no terminal, yet shows a bar
    return type(sys.stderr).__module__.startswith("ipykernel") or sys.stderr.isatty()


class Report(Progress):
    """The state of a fit in words, with the time left as epochs to come at the last epoch's pace."""

    def __init__(self, max_epochs: float) -> None:
        self._max_epochs, self._number, self._elbo = max_epochs, 0.0, math.nan
        self._gap = self._epochs_left = math.inf
        self._started = self._ended = time.monotonic()
        self._pace, self._reason, self._n_seen = 0.0, "", 0

    def update(self) -> None:
        self._n_seen += 1

    def epoch(self, number: float, elbo: float, gap: float, epochs_left: float) -> None:
        now = time.monotonic()
        self._pace, self._ended = now - self._ended, now
        self._number, self._elbo, self._gap, self._epochs_left = number, elbo, gap, epochs_left

    def end(self, reason: str) -> None:
        self._reason = reason

    def now(self) -> str:
        """Words on the fit while it runs."""
        if self._reason:
            return f"{self._so_far()}; finishing"
        if not self._number:
            return (
                f"first epoch, {self._n_seen:,} minibatch(es) so far" if self._n_seen else "before the first minibatch"
            )
        missing = f", {self._gap:.1%} of the gain in ELBO still missing" if self._gap < math.inf else ""
        most = max(self._max_epochs - self._number, 0.0)
        about = "about" if self._epochs_left < most else "at most"
        left = f"{about} {duration(min(self._epochs_left, most) * self._pace)} left"
        made = _count(self._number)
        return f"epoch {made} of at most {_count(self._max_epochs)}, ELBO {self._elbo:.5f} per entry{missing}; {left}"

    def last(self) -> str:
        """Words on the fit at its end."""
        return f"{self._so_far()}, in {duration(time.monotonic() - self._started)}"

    def _so_far(self) -> str:
        return f"{_count(self._number)} epoch(s), ELBO {self._elbo:.5f} per entry, {self._reason}"


class Beat:
    """A plain line every half minute, for logs: of the fit that is under way, or of how long work has taken."""

    def __init__(self, name: str) -> None:
        self._name, self._begun, self._over = name, time.monotonic(), threading.Event()
        self.report: Report | None = None
        self.is_told = True  # whether nothing is left to say at the end
        # a thread, because a single step on large data may take longer than that
        self._thread = threading.Thread(target=self._repeat, name="scvi_lfm progress", daemon=True)

    def __enter__(self) -> Self:
        with contextlib.suppress(RuntimeError):  # where memory is short there may be no room for a thread
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if kind is None and not self.is_told:
            self._write(f"done in {self._took()}")

    def _repeat(self) -> None:
        while not self._over.wait(EVERY):
            report, self.is_told = self.report, False
            self._write(f"at work for {self._took()}" if report is None else report.now())

    def end(self, report: Report) -> None:
        """Say the last of a fit; work after it speaks for itself again."""
        self.report, self.is_told = None, True
        self._write(report.last())

    def _took(self) -> str:
        return duration(time.monotonic() - self._begun)

    def _write(self, text: str) -> None:
        # a log that cannot be written to must not end the work
        with contextlib.suppress(OSError, ValueError):
            print(f"scvi-lfm: {self._name}: {text}", file=sys.stderr, flush=True)


# of the call that is under way: what works inside it speaks by the same clock
_BEAT: ContextVar[Beat | None] = ContextVar("scvi_lfm progress", default=None)


@contextlib.contextmanager
def beating(name: str, *, shown: bool) -> Iterator[None]:
    """A plain line every half minute while there is work, where `shown` and standard error is no terminal."""
    if not shown or sys.stderr is None or _takes_a_bar() or _BEAT.get() is not None:
        yield
        return
    with Beat(name) as beat:
        token = _BEAT.set(beat)
        try:
            yield
        finally:
            _BEAT.reset(token)


class Lines(Report):
    """A plain line every half minute and one at the end, for logs."""

    def __enter__(self) -> Self:
        self._files = contextlib.ExitStack()
        self._beat = _BEAT.get() or self._files.enter_context(Beat("fit"))
        self._beat.report = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._beat.report = None
        if kind is None:
            self._beat.end(self)
        self._files.__exit__(kind, None, traceback)


class Bar(Report):
    """A line that renews itself and is gone at the end."""

    def __enter__(self) -> Self:
        from tqdm.auto import tqdm

        # no share of the longest fit possible: most stop early
        self._bar = tqdm(
            desc="fit", unit=" minibatches", leave=False, bar_format="{desc}: {n_fmt}{unit} [{elapsed}]{postfix}"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._bar.close()

    def update(self) -> None:
        self._bar.update()

    def epoch(self, number: float, elbo: float, gap: float, epochs_left: float) -> None:
        super().epoch(number, elbo, gap, epochs_left)
        self._bar.set_postfix_str(self.now())


def _count(epochs: float) -> str:
    return f"{epochs:.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """A time in words, as exact as an estimate deserves."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
