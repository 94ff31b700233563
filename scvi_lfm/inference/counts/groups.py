"""Groups of cells that lie close to each other, each taken for one cell with the counts of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from ...linalg.packed import outer
from .state import Cells

if TYPE_CHECKING:
    from ...data import CellMatrix

# cells in a group, and groups, at the most
CELLS, MOST = 8, 256


@dataclass(frozen=True)
class Groups:
    """Groups of cells."""

    of_cell: np.ndarray  # (n,): the group of each cell
    count: int
    cells: Cells  # one for each group: its spread about the mean is in the covariance

    @classmethod
    def of(cls, cells: Cells) -> Groups:
        """Halves of halves, each cut at the median of the coordinate that varies most."""
        n = len(cells.mean)
        splits = int(np.log2(max(min(n // CELLS, MOST), 1)))
        of_cell = _halved(cells.mean.double().cpu().numpy(), splits)
        count = 2**splits
        index = torch.from_numpy(of_cell).to(cells.mean.device)
        size = (cells.log_size + cells.mean[:, 0]).double().exp()
        total = size.new_zeros(count).index_add(0, index, size)
        share = (size / total[index]).to(cells.mean)[:, None]
        mean = cells.mean.new_zeros(count, cells.mean.shape[1]).index_add(0, index, share * cells.mean)
        # what activities differ by is in the sizes and in the weights already
        around = cells.mean - mean[index]
        around[:, 0] = 0
        second = outer(around) + cells.cov
        cov = second.new_zeros(count, second.shape[1]).index_add(0, index, share * second)
        return cls(of_cell, count, Cells(mean, cov, total.log().to(mean) - mean[:, 0]))

    def sums(self, matrix: CellMatrix) -> np.ndarray:
        """Counts of all cells of each group, (groups, m)."""
        total = np.zeros((self.count, matrix.shape[1]), dtype=np.float32)
        for cells, block in matrix.source.parts():
            groups = self.of_cell[cells]
            inside = sp.csr_array(
                (np.ones(len(groups), np.float32), (groups, np.arange(len(groups)))), shape=(self.count, len(groups))
            )
            found = inside @ block
            total += found.toarray() if sp.issparse(found) else found
        return total


def _halved(points: np.ndarray, splits: int) -> np.ndarray:
    """The part of each point."""
    of_point = np.zeros(len(points), dtype=np.int64)
    parts = [np.arange(len(points))]
    for _ in range(splits):
        halves = []
        for part in parts:
            some = points[part]
            order = np.argsort(some[:, some.var(0).argmax()], kind="stable")
            halves += np.array_split(part[order], 2)
        parts = halves
    for number, part in enumerate(parts):
        of_point[part] = number
    return of_point
