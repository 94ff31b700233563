"""The chunks of a dask array on a cluster: the worker that holds or reads them works on their cells.

What travels are the function, what it needs to know, and what it makes of the cells; values stay where they are.
"""

from __future__ import annotations

import functools
import pickle
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp
import torch

from .cluster_errors import raised_by_function
from .memory import MemorySource, take
from .packing import outlined, pickled, unpickled
from .source import CellSource, stacked
from .under_way import Run, batched, in_turn, large_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Cells = slice | np.ndarray

# a task has the cells of some chunks: of so many that there are enough tasks for the workers, and that what a task
# makes of its cells, (genes, k) for the most part, is little beside their values. It depends on the data alone.
TASKS = 32
LEAST_CELLS, MOST_CELLS = 2**10, 2**14
# averages have the size of the genes, and come here added up for so many tasks
TASKS_TOGETHER = 8

P = ParamSpec("P")
Result = TypeVar("Result")


class OfCells(Protocol):
    """Holder of values of cells: a source, or a matrix."""

    def over(self, leaf: CellSource, cells: Cells = slice(None)) -> Any:
        """Source or matrix of some cells, whose values `leaf` has."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Cells of neighbouring chunks, on the cluster."""

    first: int
    last: int
    n_cells: int
    chunks: dict[str, slice]  # cells of each chunk, by the key of what computes it
    held: Any  # Delayed: what has their values; None: nothing, for what is done without


@dataclass(frozen=True, eq=False)
class Cluster:
    """The active client, and the chunks of an array that its workers compute."""

    client: Any  # distributed.Client
    where: str  # the array, in words
    n_genes: int
    chunks: Sequence[Any]  # Delayed
    borders: np.ndarray  # (chunks + 1,): positions of cells
    form: Callable[[Any, slice], sp.csr_array | np.ndarray]  # of a chunk and its cells: checked

    @property
    def groups(self) -> np.ndarray:
        """Borders of the cells of tasks."""
        n_cells = int(self.borders[-1])
        size = min(max(n_cells // TASKS, LEAST_CELLS), MOST_CELLS)
        found = [0]
        for border in self.borders[1:].tolist():
            if border - found[-1] >= size or border == n_cells:
                found.append(border)
        return np.unique(found)

    def cut(self, cells: Cells) -> list[tuple[int, Cells]]:
        """Increasing cells, by the task to which they belong."""
        groups = self.groups
        if isinstance(cells, slice):
            inside = ((max(cells.start, a), min(cells.stop, b)) for a, b in pairwise(groups.tolist()))
            return [(number, slice(a, b)) for number, (a, b) in enumerate(inside) if a < b]
        parts = np.split(cells, np.searchsorted(cells, groups[1:-1]))
        return [(number, part) for number, part in enumerate(parts) if len(part)]

    def place(self, whole: OfCells, cells: Cells, *, keep: bool = False) -> Placed:
        """Placed cells of one task; their values stay on the cluster where they are to be kept."""
        import dask

        first, last = _ends(cells)
        spans, taken = {}, []
        for number in range(int(np.searchsorted(self.borders, first, side="right")) - 1, len(self.chunks)):
            span = slice(*self.borders[number : number + 2].tolist())
            if span.start > last:
                break
            if n_cells_in(inside := _within(cells, span)):
                spans[number] = span
                taken.append(inside)
        n_cells = n_cells_in(cells)
        hollow = whole.over(MemorySource(sp.csr_array((n_cells, self.n_genes), dtype=np.float32)), cells)
        packed = pickled((self.form, list(spans.values()), taken))
        held = dask.delayed(hold_cells, pure=False)(pickled(hollow), packed, *(self.chunks[number] for number in spans))
        if keep:
            held = self.client.persist(held)
        return Placed(
            first, last, n_cells, {str(self.chunks[number].key): span for number, span in spans.items()}, held
        )

    @staticmethod
    def bare(cells: Cells) -> Placed:
        """Cells of one task that does without their values."""
        return Placed(*_ends(cells), n_cells_in(cells), {}, None)

    def each(
        self,
        function: Callable[..., Result],
        placed: Sequence[Placed],
        *parts: Sequence[Any],
        pool: Callable[[Iterable[Result], int], Result] | None = None,
    ) -> Iterator[Result]:
        """Results of `function` for what has the values of each, in order, with its part of what has one for each.

        The function travels once to a worker, with every tensor that parts may have too: these do not travel again.
        `pool` makes one result of those of neighbouring tasks, of so many cells, on a worker: only that comes here.
        """
        import dask

        outline, tensors = outlined(function)
        known = dask.delayed(hold_function, pure=False)(outline, pickled(tensors))
        with large_graphs():
            known = self.client.persist(known)  # or it would be sent with each of several runs

        def run(tasks: Sequence[tuple[Any, ...]]) -> Run:
            told = [pickled(of_each, tensors) for _, *of_each in tasks]
            of_run = [each for each, *_ in tasks]
            made = [
                dask.delayed(work, pure=False)(known, each.held, some) for each, some in zip(of_run, told, strict=True)
            ]
            if pool is not None and len(tasks) > 1:
                packed = pickled((pool, sum(each.n_cells for each in of_run)))
                made.append(dask.delayed(work_together, pure=False)(packed, *made))
            return Run(of_run, made, sum(map(len, told)))

        together = 1 if pool is None else TASKS_TOGETHER
        runs = map(run, batched(zip(placed, *parts, strict=True), together))
        return map(self._unpacked, in_turn(self.client, self.where, runs))

    @staticmethod
    def _unpacked(found: bytes) -> Any:
        """Result of a task, as it comes here."""
        return pickle.loads(found)

    def each_task(
        self, function: Callable[..., Result], whole: OfCells, of_cells: Callable[[slice], Any] | None = None
    ) -> Iterator[Result]:
        """Results of `function` for the cells of each task, in order, with what `of_cells` tells of these."""
        cells = [slice(first, last) for first, last in pairwise(self.groups.tolist())]
        told = [] if of_cells is None else [list(map(of_cells, cells))]
        return self.each(function, [self.place(whole, some) for some in cells], *told)

    def entries(self, source: CellSource, cell: np.ndarray, gene: np.ndarray) -> np.ndarray:
        """The values at some positions, in the order of cells."""
        groups = self.groups
        edges = np.searchsorted(cell, groups)
        asked = [
            (slice(*groups[number : number + 2].tolist()), slice(first, last))
            for number, (first, last) in enumerate(pairwise(edges.tolist()))
            if first < last
        ]
        placed = [self.place(source, cells) for cells, _ in asked]
        cells, genes = [cell[at] - some.start for some, at in asked], [gene[at] for _, at in asked]
        return np.concatenate([cell[:0].astype(source.dtype), *self.each(_entries, placed, cells, genes)])

    def gather(self, source: CellSource, cells: Cells) -> sp.csr_array | np.ndarray:
        """The values of some increasing cells, which travel."""
        placed = [self.place(source, part) for _, part in self.cut(cells)]
        return stacked(list(self.each(_whole, placed)))


@dataclass(frozen=True)
class Held:
    """What a worker holds, with its size, by which the scheduler decides where to work.

    To another worker goes what it was made of, which nothing changes: what is held may be at work meanwhile, and then
    notes down what it computes once.
    """

    what: Any
    n_bytes: int
    made: tuple[Callable[..., Held], Any, Any]
    tensors: tuple[torch.Tensor, ...] = ()  # of a function

    def __sizeof__(self) -> int:
        return self.n_bytes

    def __reduce__(self) -> tuple[Callable[..., Held], tuple[Any, Any]]:
        make, *parts = self.made
        return make, (parts[0], parts[1])


def hold_cells(hollow: bytes, packed: bytes, *chunks: Any) -> Held:
    """Holder of the values of some cells of a few chunks."""
    with raised_by_function():
        form, spans, taken = pickle.loads(packed)
        parts = [take(form(*of_chunk), which) for *of_chunk, which in zip(chunks, spans, taken, strict=True)]
        return _hold_values(hollow, stacked(parts))


def _hold_values(hollow: bytes, values: sp.csr_array | np.ndarray) -> Held:
    n_bytes = values.nbytes if isinstance(values, np.ndarray) else values.data.nbytes + values.indices.nbytes
    what = pickle.loads(hollow).over(MemorySource(values))
    return Held(what, n_bytes + len(hollow), (_hold_values, hollow, values))


def hold_function(outline: bytes, packed: bytes) -> Held:
    """A function that many tasks call."""
    tensors = pickle.loads(packed)
    made = hold_function, outline, packed
    return Held(unpickled(outline, tensors), len(outline) + len(packed), made, tensors)


def on_one_thread(function: Callable[P, Result]) -> Callable[P, Result]:
    """Have torch use one thread in a function that many threads of dask are at."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(n_threads)

    return run


@contextmanager
def with_threads_of_worker() -> Iterator[None]:
    """Have torch use as many threads as a worker of dask has, in what is alone on it."""
    from distributed import get_worker

    n_threads = torch.get_num_threads()
    torch.set_num_threads(get_worker().state.nthreads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@on_one_thread
def work(function: Held, cells: Held | None, packed: bytes) -> bytes:
    """Result of a function for some cells."""
    with raised_by_function():
        return pickled(function.what(cells and cells.what, *unpickled(packed, function.tensors)))


@on_one_thread
def work_together(packed: bytes, *found: bytes) -> bytes:
    """One result of those of a few tasks."""
    with raised_by_function():
        pool, n_cells = pickle.loads(packed)
        return pickled(pool(map(pickle.loads, found), n_cells))


def _whole(source: CellSource) -> sp.csr_array | np.ndarray:
    return source.whole()


def _entries(source: CellSource, cell: np.ndarray, gene: np.ndarray) -> np.ndarray:
    return source.entries(cell, gene)


def _ends(cells: Cells) -> tuple[int, int]:
    """The first and the last of increasing cells."""
    return (cells.start, cells.stop - 1) if isinstance(cells, slice) else (int(cells[0]), int(cells[-1]))


def n_cells_in(cells: Cells) -> int:
    """Number of cells at some positions."""
    return cells.stop - cells.start if isinstance(cells, slice) else len(cells)


def _within(cells: Cells, span: slice) -> Cells:
    """Positions in a span of those of increasing cells that are there."""
    if isinstance(cells, slice):
        return slice(max(cells.start, span.start) - span.start, min(cells.stop, span.stop) - span.start)
    first, last = np.searchsorted(cells, (span.start, span.stop))
    return cells[first:last] - span.start
