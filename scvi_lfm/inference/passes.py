"""Averages over all cells from those of blocks of cells: the one place where blocks are added up."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .state import Averages

A = TypeVar("A", bound="Averages")
More = TypeVar("More")


def average(blocks: Iterable[tuple[int, A]], n_cells: int) -> A:
    """Averages over `n_cells` cells from those of blocks, each with its number of cells, one block at a time."""
    total: A | None = None
    for count, part in blocks:
        share = count / n_cells
        if total is None:
            total = part.scaled(share)
        else:
            total.add_(part, share)
    if total is None:
        msg = "There are no blocks of cells."
        raise ValueError(msg)
    return total


def average_with(blocks: Iterable[tuple[int, A, More]], n_cells: int) -> tuple[A, list[More]]:
    """Averages over `n_cells` cells from those of blocks, and what else each block brings, in order."""
    more: list[More] = []

    def averages() -> Iterator[tuple[int, A]]:
        for count, part, other in blocks:
            more.append(other)
            yield count, part

    return average(averages(), n_cells), more


def pooled(blocks: Iterable[tuple[int, A]], n_cells: int) -> tuple[int, A]:
    """Averages over the cells of some blocks, with their number, as if they were one block."""
    return n_cells, average(blocks, n_cells)


def pooled_with(blocks: Iterable[tuple[int, A, list[More]]], n_cells: int) -> tuple[int, A, list[More]]:
    """Averages over the cells of some blocks, and what else these bring, as if they were one block."""
    found, more = average_with(blocks, n_cells)
    return n_cells, found, [one for some in more for one in some]


def added(total: A | None, part: A, share: float) -> A:
    """The total of the blocks before and a share of one more, in the memory of that one; the total stays."""
    if total is None:
        return part.scaled(share)
    return total.joined(part, lambda mine, more: torch.add(mine, more, alpha=share, out=more))
