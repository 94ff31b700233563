"""Blocks of cells by the tasks of a cluster, and visits to them on a worker."""

from __future__ import annotations

from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from .cluster import n_cells_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .cluster import Cluster
    from .matrix import CellMatrix

Result = TypeVar("Result")


def by_task(
    cluster: Cluster, parts: Sequence[slice | np.ndarray]
) -> tuple[list[slice | np.ndarray], list[list[slice]]]:
    """Increasing cells, cut where a task ends; and the blocks of each task as parts of the cells of that task."""
    cut = [piece for part in parts for piece in cluster.cut(part)]
    tasks: list[list[slice]] = []
    for _, pieces in groupby(cut, key=itemgetter(0)):
        ends = np.cumsum([0, *(n_cells_in(cells) for _, cells in pieces)]).tolist()
        tasks.append([slice(first, last) for first, last in pairwise(ends)])
    return [cells for _, cells in cut], tasks


def joined_cells(parts: Sequence[slice | np.ndarray]) -> slice | np.ndarray:
    """Positions of neighbouring blocks."""
    ends = parts[0], parts[-1]
    if isinstance(ends[0], slice) and isinstance(ends[1], slice):
        return slice(ends[0].start, ends[1].stop)
    return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])


def visit_blocks(
    function: Callable[..., Result],
    pool: Callable[[Iterable[Result], int], Result] | None,
    dtype: torch.dtype,
    matrix: CellMatrix,
    cells: Sequence[slice],
    parts: Sequence[Sequence[Any]],
) -> list[Result]:
    """Results of `function` for some blocks of a matrix, with their parts of what has one for each; on a worker."""
    found = (
        function(matrix.batch(some, torch.device("cpu"), dtype), *more)
        for some, *more in zip(cells, *parts, strict=True)
    )
    return list(found) if pool is None else [pool(found, cells[-1].stop)]


def visit_parts(
    function: Callable[..., Result],
    pool: Callable[[Iterable[Result], int], Result] | None,
    _: None,
    cells: Sequence[slice],
    parts: Sequence[Sequence[Any]],
) -> list[Result]:
    """Results of `function` for what has a part for each of some blocks; on a worker."""
    found = (function(*more) for more in zip(*parts, strict=True))
    return list(found) if pool is None else [pool(found, cells[-1].stop)]


def pool_tasks(
    pool: Callable[[Iterable[Result], int], Result], found: Iterable[list[Result]], n_cells: int
) -> list[Result]:
    """One result of those of a few tasks; on a worker."""
    return [pool((each for of_task in found for each in of_task), n_cells)]
