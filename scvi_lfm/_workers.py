"""Workers: as many threads as torch was given, each on a block of its own, one thread an operation.

Threads that share an operation wait for each other at its end, thousands of times in a fit, and what else runs on the
machine makes them wait long. Workers share nothing: a block is one thread's from beginning to end, and its borders
depend on the data alone, so that no bit of a result depends on how many there are.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import torch

from ._context import prepare_threads
from ._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

# what each worker more adds to one
EFFICIENCY = 0.8
# so many rows are worth two blocks at the least
ROWS_TO_SHARE = 512

P = ParamSpec("P")
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Crew:
    """The workers of one call; threads are begun when there is work for them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Have a worker do it."""
        if self._pool is None:
            # torch keeps the number of threads of an operation for each thread
            self._pool = ThreadPoolExecutor(self.size, "scvi_lfm", initializer=torch.set_num_threads, initargs=(1,))
        return self._pool.submit(function, item)

    def end(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_crew: ContextVar[_Crew | None] = ContextVar("_crew", default=None)


@contextmanager
def workers() -> Iterator[None]:
    """Work with `torch.get_num_threads()` workers, one thread an operation, and put the number back afterwards."""
    prepare_threads()
    n_threads = torch.get_num_threads()
    if _crew.get() is not None or n_threads == 1:
        yield
        return
    crew = _Crew(n_threads)
    token = _crew.set(crew)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        crew.end()
        _crew.reset(token)
        torch.set_num_threads(n_threads)


def n_workers() -> int:
    """Number of workers that work at a time."""
    crew = _crew.get()
    return 1 if crew is None else crew.size


def work_clock() -> float:
    """Processor seconds of this process, over what its workers get through: what else runs on the machine adds none."""
    return time.process_time() / (1 + EFFICIENCY * (n_workers() - 1))


def with_workers(function: Callable[P, Result]) -> Callable[P, Result]:
    """Run a function with :func:`workers`, unless its `device` is a GPU, which has one stream of its own."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        if _is_on_gpu(kwargs.get("device", "auto")):
            prepare_threads()
            return function(*args, **kwargs)
        with workers():
            return function(*args, **kwargs)

    return run


def _is_on_gpu(device: object) -> bool:
    name = settings.device if device == "auto" else device
    return torch.cuda.is_available() if name == "auto" else str(name).startswith("cuda")


def for_each(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call a function with each item, for what it does: :func:`in_order` without results."""
    for _ in in_order(function, items):
        pass


def even_slices(n: int, count: int, step: int = 1) -> list[slice]:
    """Slices of consecutive rows, `count` of nearly the same size, each of which begins at a multiple of `step`."""
    edges = (step * np.linspace(0, -(-n // step), count + 1).astype(int)).clip(max=n)
    return [slice(int(start), int(stop)) for start, stop in pairwise(edges)]


def even_blocks(n: int, most: int, device: torch.device, step: int = 1) -> list[slice]:
    """Blocks of consecutive rows, nearly equal and at most `most` long, or up to a whole `step`.

    Of many rows two workers get as many blocks.
    """
    count = -(-n // most)
    count += count % 2 if device.type == "cpu" and n >= ROWS_TO_SHARE else 0
    return even_slices(n, count, step)


def meanwhile(function: Callable[[], Result]) -> Callable[[], Result]:
    """What gives the result of `function`, which a worker is at while the caller goes on.

    Without workers it is computed when it is asked for.
    """
    return _begun(function, _crew.get())


def _begun(function: Callable[[], Result], crew: _Crew | None) -> Callable[[], Result]:
    return functools.cache(function) if crew is None else crew.submit(lambda _: function(), None).result


def one_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, own_thread: bool = False
) -> Iterator[Result]:
    """`function` of each item, in their order; a worker is at the next one while a result is used.

    For what is read before all workers are at it, one item after the other. Where there are no workers, a thread of
    its own is begun for it if `own_thread`.
    """
    own = _Crew(1) if own_thread and _crew.get() is None else None
    crew = own or _crew.get()
    before: Callable[[], Result] | None = None
    try:
        for item in items:
            ahead = _begun(functools.partial(function, item), crew)
            if before is not None:
                yield before()
            before = ahead
        if before is not None:
            yield before()
    finally:
        if own is not None:
            own.end()


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in their order; workers are at the next ones while a result is used.

    Items are taken when there is a worker for them, so that few are in memory at a time. What `function` writes to
    must be its item's alone.
    """
    crew = _crew.get()
    if crew is None:
        yield from map(function, items)
        return
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(crew.submit(function, item))
            if len(ahead) > crew.size:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()
        wait(ahead)
