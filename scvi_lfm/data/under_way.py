"""Tasks of a cluster that are under way, so many at a time that what they are told does not pile up anywhere."""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._calls import warn_user
from .cluster_errors import naming_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# what tasks under way are told of their cells, unless fewer tasks than this for each thread are under way
MOST_BYTES, TASKS_PER_THREAD = 2**26, 2
SECONDS_UNTIL_TOLD = 60  # that there is no worker

Item = TypeVar("Item")


class OfTask(Protocol):
    """Cells of a task."""

    @property
    def first(self) -> int:
        """Position of the first."""

    @property
    def last(self) -> int:
        """Position of the last."""

    @property
    def chunks(self) -> Mapping[str, slice]:
        """Cells of each chunk, by the key of what computes it."""


@dataclass(frozen=True)
class Run:
    """Tasks that are given to a cluster together."""

    tasks: Sequence[OfTask]
    made: Sequence[Any]  # Delayed: of each, then what is made of all of them, where they are several
    n_bytes: int  # that they are told of their cells


def batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Consecutive items, `size` at a time."""
    rest = iter(items)
    while some := tuple(islice(rest, size)):
        yield some


def large_graphs() -> Any:
    """Context in which dask does not warn of a few megabytes that a step has to tell every worker."""
    import dask

    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})


def in_turn(client: Any, where: str, runs: Iterable[Run]) -> Iterator[bytes]:
    """The last result of each run, in order.

    Raises
    ------
    OSError, RuntimeError
        What :func:`~.cluster_errors.naming_cells` says of the cells of a task.
    """
    rest, waiting, at_least = iter(runs), deque[tuple[Run, list[Any]]](), 0
    while True:
        new: list[Run] = []
        while True:
            under_way = [*(run for run, _ in waiting), *new]
            if sum(run.n_bytes for run in under_way) > MOST_BYTES:
                at_least = at_least or TASKS_PER_THREAD * sum(client.nthreads().values())
                if sum(len(run.tasks) for run in under_way) >= at_least:
                    break
            if (run := next(rest, None)) is None:
                break
            new.append(run)
        if new:
            with large_graphs():
                futures = iter(client.compute([one for run in new for one in run.made]))
            waiting.extend((run, list(islice(futures, len(run.made)))) for run in new)
        if not waiting:
            return
        yield _result(client, where, *waiting.popleft())


def _result(client: Any, where: str, run: Run, futures: list[Any]) -> bytes:
    _wait_for(client, futures[-1])
    try:
        return futures[-1].result()
    except Exception:
        # an error of one of them is that of what is made of all
        for task, future in zip(run.tasks, futures, strict=False):
            if future.status not in {"finished", "pending"}:
                with naming_cells(where, task.first, task.last, task.chunks):
                    future.result()
        with naming_cells(where, run.tasks[0].first, run.tasks[-1].last, {}):
            raise


def _wait_for(client: Any, future: Any) -> None:
    """Wait until a future has come to its end, and warn where there is no worker to bring it there."""
    from distributed import wait

    while not future.done():
        # one that was cancelled says so when it is asked for its result
        with suppress(TimeoutError, CancelledError):
            wait(future, timeout=SECONDS_UNTIL_TOLD)
            return
        if future.status == "pending" and not client.nthreads():
            warn_user(
                f"The cluster at {client.scheduler.address} has no worker: the call waits until one comes. Start some, "
                "or stop it by Ctrl-C."
            )
