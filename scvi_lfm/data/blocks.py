"""The only iterator over cells: in which order they come, how many at a time, and where their values go."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .batch import Batch
    from .matrix import CellMatrix

    Cells = TypeVar("Cells", bound=np.ndarray | slice)

# the rule: what the values of a block take where they are dense; what is computed of them takes several times as much
BLOCK_BYTES = 2**24


def blocks(
    matrix: CellMatrix, device: torch.device, dtype: torch.dtype = torch.float32, *, size: int | None = None
) -> Iterator[tuple[slice, Batch]]:
    """Every cell once, in order: positions and block, of `size` cells each, or as many as the rule says."""
    return blocks_of(matrix, slices(*matrix.shape, dtype, size=size), device, dtype)


def blocks_of(
    matrix: CellMatrix, parts: Iterable[Cells], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Cells, Batch]]:
    """The cells at some positions, part by part, each read when it is asked for."""
    for cells in parts:
        yield cells, matrix.batch(cells, device, dtype)


def slices(
    n_cells: int, n_genes: int, dtype: torch.dtype = torch.float32, *, size: int | None = None
) -> Iterator[slice]:
    """Consecutive cells, `size` at a time, or as many as the rule says."""
    size = size or max(1, BLOCK_BYTES // (max(n_genes, 1) * dtype.itemsize))
    return (slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size))


def even_slices(n_cells: int, count: int) -> list[slice]:
    """Consecutive cells in `count` parts of nearly the same size."""
    edges = np.linspace(0, n_cells, count + 1).astype(int)
    return [slice(int(start), int(stop)) for start, stop in pairwise(edges)]


def random_parts(n_cells: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cells at random in `count` parts of nearly the same size; within a part in order."""
    return [np.sort(part) for part in np.array_split(rng.permutation(n_cells), count)]
