"""One trial in a process of its own: forked, so that nothing is imported again, and ended at a random moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

# processor seconds after which a trial counts as one that hangs
LIMIT = 60
AT_WORK = ("scvi-lfm: warning", *(f"scvi-lfm: {name}:" for name in ("fit", "rank", "anomalies", "project")))


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    status: int  # exit status, or minus the signal that ended it
    text: str  # what it wrote on standard error
    seconds: float  # processor time

    @property
    def lines(self) -> list[str]:
        """Lines on standard error but warnings and those by which a command says that it is at work."""
        said = self.text.splitlines()
        return [line for line in said if not line.startswith(AT_WORK)]


def in_child(work: Callable[[], int | None], *, stop: Callable[[int], None] | None = None) -> Ended:
    """Run `work` in a forked process, whose number `stop` is given to send it a signal; the parent waits."""
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = 99
        try:
            status = work() or 0
        except BaseException:  # noqa: BLE001 - whatever it is, it is what the trial shows
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    if stop is not None:
        stop(number)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status, usage = os.wait4(number, 0)
    return Ended(os.waitstatus_to_exitcode(status), text, usage.ru_utime + usage.ru_stime)


def command(*arguments: object) -> Callable[[], int]:
    """What runs the command line with these arguments."""

    def run() -> int:
        from scvi_lfm._cli import main

        return main([str(argument) for argument in arguments])

    return run


def processor_seconds(number: int) -> float:
    """Processor time of the main thread of a process; infinite once it has ended."""
    try:
        return int(Path(f"/proc/{number}/schedstat").read_text().split()[0]) * 1e-9 if _runs(number) else float("inf")
    except (OSError, IndexError):
        return float("inf")


def _runs(number: int) -> bool:
    return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


def measure(work: Callable[[], int | None]) -> tuple[Ended, float]:
    """Run `work`, and the processor seconds that its main thread took."""
    seconds = [0.0]

    def watch(number: int) -> None:
        while (now := processor_seconds(number)) < float("inf"):
            seconds.append(now)
            time.sleep(0.001)

    return in_child(work, stop=watch), seconds[-1]


def measure_writing(work: Callable[[], int | None], folder: Path) -> float:
    """Seconds from the first thing that `work` writes into a hidden folder of `folder` to its end."""
    moments = []

    def watch(number: int) -> None:
        while processor_seconds(number) < float("inf"):
            if _drafts(folder):
                moments.append(time.perf_counter())
        moments.append(time.perf_counter())

    in_child(work, stop=watch)
    return moments[-1] - moments[0]


def send_after(seconds: float, which: signal.Signals) -> Callable[[int], None]:
    """What sends a signal once a process has had so much of the processor."""

    def stop(number: int) -> None:
        while processor_seconds(number) < seconds:
            time.sleep(0.0003)
        os.kill(number, which)  # one that has ended keeps its number until it is waited for

    return stop


def send_while_writing(folder: Path, seconds: float, which: signal.Signals) -> Callable[[int], None]:
    """What sends a signal so long after a draft has appeared in a hidden folder of `folder`."""

    def stop(number: int) -> None:
        begun = set(_drafts(folder))
        while processor_seconds(number) < float("inf"):
            if not begun.issuperset(_drafts(folder)):
                time.sleep(seconds)
                break
        os.kill(number, which)

    return stop


def _drafts(folder: Path) -> list[Path]:
    """Hidden folders in which something has been written."""
    found = []
    for inside in hidden(folder):
        with contextlib.suppress(FileNotFoundError):  # one that was taken away meanwhile
            found += [inside] if os.listdir(inside) else []  # noqa: PTH208
    return found


def fingerprint(path: Path) -> str:
    """Of a file, or of all files in a folder; empty where there is nothing."""
    found = hashlib.sha256()
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    for part in files:
        if not part.exists():
            return ""
        found.update(str(part.relative_to(path)).encode() + part.read_bytes())
    return found.hexdigest()


def hidden(folder: Path) -> list[Path]:
    """Hidden folders and files."""
    return [path for path in folder.iterdir() if path.name.startswith(".")]
