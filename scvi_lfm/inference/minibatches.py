"""Random minibatches of cells, equal in size, all of them once an epoch."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from .._workers import even_slices
from ..data.blocks import Blocks, blocks_of, random_parts
from ..data.transfer import sent_ahead, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from ..data import Batch, CellMatrix
    from ..data.cluster import Cluster, Placed

    Cells = TypeVar("Cells", np.ndarray, slice)

Result = TypeVar("Result")


# what the values of minibatches take that one worker of a cluster goes through: it holds them all
BYTES_TOGETHER, BYTES_OF_VALUE = 2**28, 8


@dataclass(frozen=True)
class Stretch:
    """Neighbouring minibatches of an epoch, whose values are brought together on one worker of a cluster."""

    cluster: Cluster
    rows: np.ndarray  # positions of their cells, increasing
    minibatches: list[np.ndarray]  # positions of the cells of each among these
    placed: Placed

    def run(self, function: Callable[[CellMatrix, Sequence[np.ndarray], Any], Result], own: Any) -> Result:
        """Result of a function of a matrix of these cells, the minibatches and what is told of the cells."""
        return next(self.cluster.each(function, [self.placed], [self.minibatches], [own]))


class Minibatches:
    """Blocks of a matrix on the device; a single block is made once and kept."""

    def __init__(
        self, matrix: CellMatrix, batch_size: int, device: torch.device, dtype: torch.dtype, rng: np.random.Generator
    ) -> None:
        self.matrix, self._device, self._dtype, self._rng = matrix, device, dtype, rng
        n_cells = matrix.shape[0]
        self.count = -(-n_cells // batch_size)
        # the first block is for the start, and for figures of all
        self._first_order = random_parts(n_cells, self.count, rng, first_short=True)

    def of(self, matrix: CellMatrix) -> Minibatches:
        """Minibatches of another matrix of these cells, in the same blocks."""
        other = copy(self)
        other.matrix = matrix
        return other

    @cached_property
    def _whole(self) -> Batch | None:
        return self.matrix.batch(None, self._device, self._dtype) if self.count == 1 else None

    @cached_property
    def _all_kept(self) -> Blocks | None:
        return self._blocks(None, last=True) if self.count == 1 else None

    def _blocks(self, cells: np.ndarray | None, **kept: bool) -> Blocks:
        return Blocks.of_cells(self.matrix, cells, self._device, self._dtype, **kept)

    def _draw(self) -> list[np.ndarray]:
        return random_parts(self.matrix.shape[0], self.count, self._rng)

    def _epoch(self) -> list[np.ndarray]:
        """Positions of the cells of each minibatch of an epoch."""
        return [np.arange(self.matrix.shape[0])] if self.count == 1 else self._draw()

    def _read(self, parts: Sequence[Cells]) -> Iterator[tuple[Cells, Batch]]:
        if self._whole is not None:
            return iter([(part, self._whole) for part in parts])
        return blocks_of(self.matrix, parts, self._device, self._dtype)

    def first_rows(self) -> np.ndarray:
        """Positions of the cells of the block to start from."""
        return self._first_order[0]

    def first(self) -> Batch:
        """The block to start from."""
        return next(self._read(self._first_order))[1]

    @cached_property
    def start(self) -> Blocks:
        """The cells to start from, for many visits."""
        return self._all_kept or self._blocks(self._first_order[0], last=True)

    @property
    def everyone(self) -> Blocks:
        """Blocks of all cells, in the order of the matrix."""
        return self._all_kept or self._blocks(None)

    def epoch(self, number: int, n_seen: int = 0) -> Iterator[Blocks]:
        """Blocks of every cell once, in random order; the first epoch leaves out the cells that inference started from.

        The first `n_seen` minibatches are left out.
        """
        if self._all_kept is not None:
            return iter([self._all_kept][n_seen:])
        order = self._first_order[1:] if number == 1 else self._draw()
        return sent_ahead(partial(self._blocks, keep=True), order[n_seen:], self._device)

    def visits(self, n_seen: int = 0) -> Iterator[tuple[np.ndarray, Blocks]]:
        """Positions and minibatches of every cell once, each one block where it is not on a cluster."""
        order = self._epoch()[n_seen:]

        def read(part: np.ndarray) -> Blocks:
            return Blocks(self.matrix, [part], self._device, self._dtype, keep=self._device.type == "cuda")

        return zip(order, sent_ahead(read, order, self._device), strict=True)

    @property
    def cluster(self) -> Cluster | None:
        """Cluster on which cells are worked on."""
        return self.matrix.source.cluster if self._device.type == "cpu" else None

    def stretches(self, n_seen: int = 0) -> Iterator[Stretch]:
        """Every cell once, in the minibatches of :meth:`numbered_epoch`, on a cluster; without the first `n_seen`."""
        cluster, leaf, order = cast("Cluster", self.cluster), self.matrix.source.leaf, self._draw()[n_seen:]
        bytes_of_all = leaf.n_stored / leaf.shape[0] * sum(map(len, order)) * BYTES_OF_VALUE
        count = min(max(1, round(bytes_of_all / BYTES_TOGETHER)), len(order))
        ahead: Stretch | None = None
        for part in even_slices(len(order), count) if order else []:
            rows = np.sort(np.concatenate(order[part]))
            inside = [np.searchsorted(rows, some) for some in order[part]]
            # its values are brought together while the one before is worked on
            following = Stretch(cluster, rows, inside, cluster.place(self.matrix, rows, keep=True))
            if ahead is not None:
                yield ahead
            ahead = following
        if ahead is not None:
            yield ahead

    def rest(self, n_seen: int, every: int = 1) -> tuple[np.ndarray, Blocks, np.ndarray]:
        """Positions and blocks of the cells of an epoch without its first `n_seen` minibatches, in order.

        Also the places among them of one in `every` cells of each minibatch of :meth:`numbered_epoch`.
        """
        parts = self._epoch()[n_seen:]
        rows, some = _in_order(parts), _in_order([part[::every] for part in parts])
        blocks = self.everyone if n_seen == 0 else self._blocks(rows)
        return rows, blocks, np.searchsorted(rows, some)

    def share_of_one_in(self, every: int) -> float:
        """Share of all cells that is one in `every` of each minibatch, the first of them."""
        n_cells = self.matrix.shape[0]
        size, longer = divmod(n_cells, self.count)
        return (longer * -(-(size + 1) // every) + (self.count - longer) * -(-size // every)) / n_cells

    def numbered_epoch(self, n_seen: int = 0) -> Iterator[tuple[Tensor, Batch]]:
        """Positions, on the device, and blocks of every cell once, in random order; without the first `n_seen`."""
        if self._whole is not None:
            return iter([(torch.arange(self.matrix.shape[0], device=self._device), self._whole)][n_seen:])
        order = self._draw()[n_seen:]
        read = partial(self.matrix.batch, device=self._device, dtype=self._dtype)
        rows = (to_device(part, self._device) for part in order)
        return zip(rows, sent_ahead(read, order, self._device), strict=True)

    def in_order(self) -> Iterator[Batch]:
        """Blocks of every cell once, in the order of the matrix."""
        return (batch for _, batch in self._read(even_slices(self.matrix.shape[0], self.count)))


def _in_order(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Positions of the cells of some parts, or of none, increasing."""
    return np.sort(np.concatenate([np.arange(0), *parts]))
