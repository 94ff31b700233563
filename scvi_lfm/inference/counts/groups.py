"""Groups of cells that lie close to each other, each taken for one cell with the counts of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from ...data.blocks import Blocks
from ...linalg.packed import outer
from .state import Cells

if TYPE_CHECKING:
    from ...data import Batch, CellMatrix

# cells of a group on average, at the least, and groups at the most
CELLS, MOST = 8, 256


@dataclass(frozen=True)
class Groups:
    """Groups of cells of nearly the same size."""

    of_cell: np.ndarray  # (n,): the group of each cell
    cells: Cells  # one for each group; how its cells differ in their factors is in its covariance

    @classmethod
    def of(cls, cells: Cells) -> Groups:
        """Groups that are halves of halves, each cut at the median of the coordinate that varies most."""
        n = len(cells.mean)
        halvings = int(np.log2(max(min(n // CELLS, MOST), 1)))
        of_cell = _halved(cells.mean.double().cpu().numpy(), halvings)
        index = torch.from_numpy(of_cell).to(cells.mean.device)
        size = (cells.log_size + cells.mean[:, 0]).double().exp()
        total = size.new_zeros(2**halvings).index_add(0, index, size)
        # by their share of the rates, so that activities are in the shares, the means and the sizes already
        share = (size / total[index]).to(cells.mean)[:, None]
        mean = cells.mean.new_zeros(len(total), cells.mean.shape[1]).index_add(0, index, share * cells.mean)
        around = cells.mean - mean[index]
        around[:, 0] = 0
        cov = cells.cov.new_zeros(len(total), cells.cov.shape[1])
        cov = cov.index_add(0, index, share * (outer(around) + cells.cov))
        return cls(of_cell, Cells(mean, cov, total.log().to(mean) - mean[:, 0]))

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.cells.mean)

    def sums(self, matrix: CellMatrix) -> np.ndarray:
        """Counts of the cells of each group together, (groups, m)."""
        total = np.zeros((self.count, matrix.shape[1]), dtype=np.float32)
        blocks = Blocks.of_size(matrix, torch.device("cpu"))
        parts = [self.of_cell[place] for place in blocks.places]
        for part in blocks.each(partial(_sums, self.count), parts, pool=lambda found, _: reduce(np.add, found)):
            total += part
        return total


def _sums(count: int, batch: Batch, of_cell: np.ndarray) -> np.ndarray:
    """Counts of the cells of each group together, of a block, (groups, m)."""
    ones = np.ones(len(of_cell), dtype=np.float32)
    members = sp.csr_array((ones, (of_cell, np.arange(len(of_cell)))), shape=(count, len(of_cell)))
    found = members @ (batch.values.numpy() if isinstance(batch.values, torch.Tensor) else batch.values)
    return found if isinstance(found, np.ndarray) else found.toarray()


def _halved(points: np.ndarray, halvings: int) -> np.ndarray:
    """The part in which each point (n, k) lies."""
    parts = [np.arange(len(points))]
    for _ in range(halvings):
        parts = [half for part in parts for half in _halves(points, part)]
    of_point = np.empty(len(points), dtype=np.int64)
    for number, part in enumerate(parts):
        of_point[part] = number
    return of_point


def _halves(points: np.ndarray, part: np.ndarray) -> list[np.ndarray]:
    some = points[part]
    order = np.argsort(some[:, some.var(0).argmax()], kind="stable")
    return np.array_split(part[order], 2)
