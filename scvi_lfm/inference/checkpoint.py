"""The state of a fit on disk: written every so often and where a fit is interrupted, read where it is called again.

When it is written depends on the clock; what is computed never does.
"""

from __future__ import annotations

import json
import operator
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._calls import warn_user
from .._settings import logger
from .checkpoint_lock import CheckpointLock
from .encoding import decode, encode
from .fingerprint import differences, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    import torch

    from ..data import CellMatrix
    from .course import Course, Place
    from .options import FitOptions

# seconds from one write to the next, at the least, and how often as long as a write took
EVERY, TIMES = 60.0, 50.0
WHAT = "checkpoint of scvi_lfm.tl.fit, 1"
HEADER, SECONDS = "header", "seconds"


class Keeper:
    """Keeper of the places from which a fit can go on; this one keeps none."""

    seconds_before: float = 0.0  # of earlier calls, up to what they kept

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, by an error or not."""

    def read(self, n_minibatches: Callable[[int], int]) -> Course | None:
        """Course of an earlier call, if there was one, where an epoch has so many minibatches by its number."""
        return None

    def keep(self, course: Course) -> Course:
        """Take note of a place between two epochs."""
        return course

    def within(self, course: Course) -> Callable[[Callable[[], Place[Any]]], Place[Any]]:
        """Function that takes note of the places inside an epoch."""
        return operator.call

    def end(self) -> None:
        """Take note that the last epoch is over."""


def keeper(matrix: CellMatrix, options: FitOptions) -> Keeper:
    """Keeper of the state of a fit, in the file that was asked for, or of nothing."""
    if options.checkpoint is None:
        return Keeper()
    return Checkpoint(Path(options.checkpoint), fingerprint(matrix, options), options.max_epochs, options.device)


class Checkpoint(Keeper):
    """Keeper of the state of a fit in a file."""

    def __init__(self, path: Path, mark: dict[str, str], max_epochs: float, device: torch.device) -> None:
        self._path, self._mark, self._max_epochs, self._device = path, mark, max_epochs, device
        self._make: Callable[[], Course] | None = None
        self._on_disk: Course | None = None
        self._due = time.monotonic() + EVERY
        self._begun = time.monotonic()
        self._lock = CheckpointLock(path)

    def __enter__(self) -> Self:
        self._lock.take()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._note(error)
        finally:
            self._lock.give_back()

    def _note(self, error: BaseException | None) -> None:
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            return
        if self._make is not None:
            self._write(self._make())
        if self._path.exists():
            error.add_note(
                f"The state of the fit is kept in {str(self._path)!r}. To go on from there, fit again with the same "
                f"data and arguments, checkpoint={str(self._path)!r} among them."
            )

    def read(self, n_minibatches: Callable[[int], int]) -> Course | None:
        """Course of an earlier call, if there was one, where an epoch has so many minibatches by its number.

        Raises
        ------
        ValueError
            The file is none of ours, is damaged, or is of another fit.
        """
        if not self._path.exists():
            return None
        header, arrays = read_file(self._path)
        differ = differences(header["fingerprint"], self._mark)
        if differ:
            msg = (
                f"The checkpoint {str(self._path)!r} is of another fit, which differs in: {differ}. Pass the data and "
                "arguments that it was made with, or another path; to begin anew, delete the file."
            )
            raise ValueError(msg)
        try:
            course: Course = decode(header["course"], arrays, self._device)
            beyond = course.goes_beyond(self._max_epochs, n_minibatches)
        except MemoryError:
            raise
        except Exception as error:
            raise _damaged(self._path, error) from error
        if beyond:
            begun = course.epochs + (course.place.n_seen > 0)
            msg = (
                f"The checkpoint {str(self._path)!r} holds a fit in epoch {begun}, and `max_epochs` is "
                f"{self._max_epochs}. Pass max_epochs={begun} or more, or another path; to begin anew, delete the file."
            )
            raise ValueError(msg)
        self._on_disk, self.seconds_before = course, float(header.get(SECONDS, 0.0))
        logger.info("going on from checkpoint %r, after %d epoch(s)", str(self._path), course.epochs)
        return course

    def keep(self, course: Course) -> Course:
        return self._told(lambda: course)

    def within(self, course: Course) -> Callable[[Callable[[], Place[Any]]], Place[Any]]:
        return lambda make: self._told(lambda: replace(course, place=make())).place

    def end(self) -> None:
        """Leave what was kept, for who calls again, and for more epochs: the last epoch is over."""
        if self._make is not None:
            self._write(self._make())
        self._make = None

    def _told(self, make: Callable[[], Course]) -> Course:
        # first, so that whatever is interrupted from here on is made again
        self._make = make
        course = make()
        if time.monotonic() >= self._due:
            self._write(course)
        return course

    def _write(self, course: Course) -> None:
        if course is self._on_disk:
            return
        begun = time.monotonic()
        try:
            write_file(self._path, self._mark, course, self.seconds_before + begun - self._begun)
            self._on_disk = course
        except OSError as error:
            # a fit is worth more than its checkpoint
            warn_user(f"The checkpoint {str(self._path)!r} could not be written ({error}); the fit goes on without.")
        now = time.monotonic()
        self._due = now + max(EVERY, TIMES * (now - begun) if EVERY else 0.0)


def write_file(path: Path, mark: dict[str, str], course: Course, seconds: float) -> None:
    """Write a file that is whole or not there: what was there before stays until it is."""
    arrays: list[np.ndarray] = []
    tree = {"what": WHAT, "fingerprint": mark, "course": encode(course, arrays), "n_arrays": len(arrays)}
    tree[SECONDS] = seconds
    header = np.frombuffer(json.dumps(tree).encode(), dtype=np.uint8)
    path = path.resolve()  # a link stays
    draft = path.with_name(f"{path.name}.part")
    try:
        with draft.open("wb") as file:
            np.savez(file, **{HEADER: header}, **{str(i): array for i, array in enumerate(arrays)})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_file(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header and the arrays of a file.

    Raises
    ------
    ValueError
        It is none of ours, or damaged.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            header = json.loads(file[HEADER].tobytes())
            arrays = [file[str(i)] for i in range(header["n_arrays"])]
        known = header["what"] == WHAT and isinstance(header["fingerprint"], dict)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if not known:
        raise _damaged(path, header["what"])
    return header, arrays


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"The file {str(path)!r} is no checkpoint of this version of scvi_lfm, or is damaged ({why}). To begin the fit "
        "anew, delete it if you have no other use for it, or pass another path as `checkpoint`."
    )
