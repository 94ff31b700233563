"""The only iterator over cells: in which order they come, how many at a time, and where their values go."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from .._workers import even_blocks, even_slices, in_order
from .blocks_of_tasks import (
    by_task,
    joined_cells,
    pool_tasks,
    visit_blocks,
    visit_parts,
)
from .cluster import n_cells_in
from .transfer import sent_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from .batch import Batch
    from .cluster import Placed
    from .matrix import CellMatrix

    Cells = TypeVar("Cells", bound=np.ndarray | slice)

Result = TypeVar("Result")

# of a block that one worker takes: enough that sums over its cells, (genes, k), are a small part of its work
CELLS_PER_BLOCK = 1024
# on a GPU one block has all of it
CELLS_PER_GPU_BLOCK = 2**15
# the rule: what the values of a block take where they are dense; what is computed of them takes several times as much
BLOCK_BYTES = 2**24
# on a GPU each operation has a cost of its own
GPU_BLOCK_BYTES = 2**28

# files are often sorted by type or donor: a part needs enough runs to hold some of each
MOST_ONE_BY_ONE = 2**15
RUNS_PER_PART = 16
# of a part that stands for all: a file reads them three times as fast as single cells, and there are hundreds of runs
CELLS_PER_SHORT_RUN = 4


class Blocks:
    """Cells of a matrix in blocks, each worked on by one worker.

    Blocks depend on the data alone. `keep` them where they are asked for again, and say that they last where this is
    often.
    """

    def __init__(
        self,
        matrix: CellMatrix,
        parts: Sequence[slice | np.ndarray],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        keep: bool = False,
        last: bool = False,
    ) -> None:
        self._matrix, self.device, self.dtype = matrix, device, dtype
        self._last, self._keep = last, keep or last
        self._kept: dict[int, Batch] = {}
        self._cluster: Any = matrix.source.cluster if device.type == "cpu" else None
        if self._cluster is not None:
            # no block has cells of two tasks
            parts, self._tasks = by_task(self._cluster, parts)
        self._parts = parts
        self._sizes = [n_cells_in(part) for part in parts]

    @classmethod
    def of_cells(
        cls,
        matrix: CellMatrix,
        cells: np.ndarray | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        **kept: bool,
    ) -> Blocks:
        """Blocks of nearly the same size, of the cells at some positions or of all."""
        n_cells = matrix.shape[0] if cells is None else len(cells)
        size = CELLS_PER_BLOCK if device.type == "cpu" else CELLS_PER_GPU_BLOCK
        parts: Sequence[slice | np.ndarray] = even_slices(n_cells, max(1, -(-n_cells // size)))
        if cells is not None:
            parts = [cells[part] for part in parts]
        return cls(matrix, parts, device, dtype, **kept)

    @classmethod
    def of_size(cls, matrix: CellMatrix, device: torch.device, size: int | None = None, width: int = 1) -> Blocks:
        """Blocks of all cells, nearly equal, of a size at the most or as the rule says for at least `width` numbers."""
        n_cells, n_genes = matrix.shape
        row, on_cpu = max(n_genes, width) * torch.float32.itemsize, device.type == "cpu"
        most = min(CELLS_PER_BLOCK, BLOCK_BYTES // row) if on_cpu else GPU_BLOCK_BYTES // row
        return cls(matrix, even_blocks(n_cells, max(most if size is None else size, 1), device), device)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(self._sizes)

    @property
    def places(self) -> list[slice]:
        """Positions of the cells of each block among the cells."""
        ends = np.cumsum([0, *self._sizes]).tolist()
        return [slice(first, last) for first, last in pairwise(ends)]

    @property
    def on_cluster(self) -> bool:
        """Whether blocks are worked on elsewhere, all cells at a time best."""
        return self._cluster is not None

    @cached_property
    def known(self) -> Tensor:
        """Covariates of the cells, (cells, p) in float64."""
        of_all = self._matrix.covariates
        known = np.empty((self.n_cells, 0)) if of_all is None else np.concatenate([of_all[at] for at in self._parts])
        return torch.as_tensor(known, dtype=torch.float64, device=self.device)

    def split(self, of_cells: Tensor) -> Sequence[Tensor]:
        """The part of each block in a tensor that has a row for each cell."""
        return of_cells.split(self._sizes)

    def each(
        self,
        function: Callable[..., Result],
        *parts: Sequence[Any],
        pool: Callable[[Iterable[Result], int], Result] | None = None,
    ) -> Iterator[Result]:
        """Results of `function` for each block, in order, with its part of what has one for each.

        On a cluster `pool` makes one result of those of the blocks of a task, and of a few tasks, in all of so many
        cells, so that only that comes here. A function that is to travel may hold no values.
        """
        if self._cluster is not None:
            return self._each_task(partial(visit_blocks, function, pool, self.dtype), self._placed, parts, pool)
        if self.device.type == "cpu":
            return self._each_here(lambda number: function(self._block(number), *(own[number] for own in parts)))
        return (function(block, *own) for block, *own in zip(self._on_device(), *parts, strict=True))

    def each_without_values(
        self,
        function: Callable[..., Result],
        *parts: Sequence[Any],
        pool: Callable[[Iterable[Result], int], Result] | None = None,
    ) -> Iterator[Result]:
        """Results of a function that is given the parts of each block alone: no cell is read; else as :meth:`each`."""
        if self._cluster is not None:
            placed = [self._cluster.bare(cells) for cells in self._of_tasks]
            return self._each_task(partial(visit_parts, function, pool), placed, parts, pool)
        return self._each_here(lambda number: function(*(own[number] for own in parts)))

    def _each_here(self, run: Callable[[int], Result]) -> Iterator[Result]:
        numbers = range(len(self._parts))
        # what is alone may use all workers
        return in_order(run, numbers) if self.device.type == "cpu" and len(numbers) > 1 else map(run, numbers)

    def _on_device(self) -> Iterator[Batch]:
        """The blocks one after the other, as a device that is not the host's gets them."""
        numbers = range(len(self._parts))
        if len(numbers) == 1 or len(self._kept) == len(numbers):
            return map(self._block, numbers)
        return sent_ahead(self._block, numbers, self.device)

    def send(self) -> list[Tensor]:
        """Have all blocks on the device, kept for what is to come, and tell where they lie there."""
        return [part for number in range(len(self._parts)) for part in self._block(number).send()]

    def _each_task(
        self,
        visit: Callable[..., list[Result]],
        placed: Sequence[Placed],
        parts: Sequence[Sequence[Any]],
        pool: Callable[[Iterable[Result], int], Result] | None,
    ) -> Iterator[Result]:
        bounds = [0, *np.cumsum([len(blocks) for blocks in self._tasks]).tolist()]
        more = [[of_blocks[first:last] for of_blocks in parts] for first, last in pairwise(bounds)]
        together = None if pool is None else partial(pool_tasks, pool)
        for found in self._cluster.each(visit, placed, self._tasks, more, pool=together):
            yield from found

    @property
    def _of_tasks(self) -> list[slice | np.ndarray]:
        """Positions of the cells of each task."""
        sizes = iter(self._parts)
        return [joined_cells([next(sizes) for _ in blocks]) for blocks in self._tasks]

    @cached_property
    def _placed(self) -> list[Placed]:
        return [self._cluster.place(self._matrix, cells, keep=self._keep) for cells in self._of_tasks]

    def _block(self, number: int) -> Batch:
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        batch = self._matrix.batch(self._parts[number], self.device, self.dtype, lasts=self._last)
        if self._keep:
            self._kept[number] = batch
        return batch


def blocks_of(
    matrix: CellMatrix, parts: Iterable[Cells], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Cells, Batch]]:
    """Positions and blocks of cells, part by part, each read when it is asked for."""
    for cells in parts:
        yield cells, matrix.batch(cells, device, dtype)


def slices(
    n_cells: int, n_genes: int, dtype: torch.dtype = torch.float32, *, size: int | None = None
) -> Iterator[slice]:
    """Slices of consecutive cells, `size` at a time, or as many as the rule says."""
    size = size or max(1, BLOCK_BYTES // (max(n_genes, 1) * dtype.itemsize))
    return (slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size))


def random_parts(n_cells: int, count: int, rng: np.random.Generator, *, first_short: bool = False) -> list[np.ndarray]:
    """Positions of cells at random in `count` parts of nearly the same size; within a part in order.

    Many cells come in short runs of neighbours, which a file gives many times faster than cells one by one.
    `first_short` draws the cells of the first part in runs that are many times shorter, to stand for all.
    """
    run = -(-n_cells // count) // RUNS_PER_PART
    if n_cells <= MOST_ONE_BY_ONE or run < 2:
        return [np.sort(part) for part in np.array_split(rng.permutation(n_cells), count)]
    if not first_short or count == 1:
        return [np.sort(part) for part in np.array_split(_in_runs(np.arange(n_cells), run, rng), count)]
    first = _short_runs(n_cells, -(-n_cells // count), min(run, CELLS_PER_SHORT_RUN), rng)
    others = _in_runs(np.delete(np.arange(n_cells), first), run, rng)
    return [first, *(np.sort(part) for part in np.array_split(others, count - 1))]


def some_cells(n_cells: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of cells at random to stand for all, in order; many cells give them in short runs of neighbours."""
    if count >= n_cells or n_cells <= MOST_ONE_BY_ONE:
        return np.sort(rng.permutation(n_cells)[:count])
    return _short_runs(n_cells, count, CELLS_PER_SHORT_RUN, rng)


def _short_runs(n_cells: int, size: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of some cells in short runs, in order."""
    runs = rng.permutation(-(-n_cells // length))[: size // length + 2]
    cells = (length * runs[:, None] + np.arange(length)).ravel()
    # counted from anywhere, around the end: each cell is as likely
    return np.sort((rng.integers(n_cells) + cells[cells < n_cells][:size]) % n_cells)


def _in_runs(cells: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of cells in random order of runs, which begin anywhere."""
    runs = np.split(cells, np.arange(rng.integers(1, length + 1), len(cells), length))
    return np.concatenate([runs[number] for number in rng.permutation(len(runs))])
