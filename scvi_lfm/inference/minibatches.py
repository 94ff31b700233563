"""Random minibatches of cells, equal in size, all of them once an epoch."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..data import Batch, CellMatrix


class Minibatches:
    """Blocks of a matrix on the device; a single block is made once and kept."""

    def __init__(
        self, matrix: CellMatrix, batch_size: int, device: torch.device, dtype: torch.dtype, rng: np.random.Generator
    ) -> None:
        self.matrix, self._device, self._dtype, self._rng = matrix, device, dtype, rng
        n_cells = matrix.shape[0]
        self.count = -(-n_cells // batch_size)
        self._first_order = self._draw()

    @cached_property
    def _whole(self) -> Batch | None:
        return self.matrix.batch(None, self._device, self._dtype) if self.count == 1 else None

    def _draw(self) -> list[np.ndarray]:
        return np.array_split(self._rng.permutation(self.matrix.shape[0]), self.count)

    def _take(self, rows: np.ndarray) -> Batch:
        return self._whole or self.matrix.batch(np.sort(rows), self._device, self._dtype)

    def first_rows(self) -> np.ndarray:
        """Positions of the cells of the block to start from."""
        return np.sort(self._first_order[0])

    def first(self) -> Batch:
        """The block to start from."""
        return self._take(self._first_order[0])

    def epoch(self, number: int) -> Iterator[Batch]:
        """Every cell once, in random order; the first epoch leaves out the block that inference started from."""
        order = self._first_order[1:] if number == 1 and self.count > 1 else self._draw()
        for rows in order:
            yield self._take(rows)

    def numbered_epoch(self) -> Iterator[tuple[Tensor, Batch]]:
        """Every cell once, in random order, each block with the positions of its cells."""
        order = [np.arange(self.matrix.shape[0])] if self._whole is not None else self._draw()
        for rows in order:
            yield torch.from_numpy(np.sort(rows)).to(self._device), self._take(rows)

    def in_order(self) -> Iterator[Batch]:
        """Every cell once, in the order of the matrix."""
        if self._whole is not None:
            yield self._whole
            return
        edges = np.linspace(0, self.matrix.shape[0], self.count + 1).astype(int)
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            yield self.matrix.batch(slice(int(start), int(stop)), self._device, self._dtype)
