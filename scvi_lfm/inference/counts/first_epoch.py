"""Stochastic steps on counts, one minibatch after the other.

What a step has to tell of genes is larger than the values of its cells, and the next one needs it. So a worker of a
cluster makes many steps, on minibatches that are brought together there, and then the next worker goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..._workers import workers
from ...data.blocks import blocks_of
from ...data.cluster import with_threads_of_worker
from ..learning_rate import learning_rate
from .gene_step import DISPERSION_EVERY, Asked, gene_step
from .sweep import visit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ...data import Batch, CellMatrix
    from .state import Cells, CountGlobals, CountProblem, CountStatistics


@dataclass(frozen=True)
class Running:
    """What stochastic steps change, besides q of their cells."""

    globals: CountGlobals
    statistics: CountStatistics
    steps: int


def stochastic_step(
    problem: CountProblem, at: Running, batch: Batch, cells: Cells, n_steps: int
) -> tuple[Running, Cells]:
    """Some steps of the cells of a minibatch, then one of the genes."""
    g = at.globals
    features = g.features(cells)
    asked = Asked.one_in(DISPERSION_EVERY, batch.n_cells)
    cells, new = visit(problem, g, features, batch, cells, n_steps, asked)
    statistics = at.statistics.blend(new, learning_rate(at.steps))
    return Running(gene_step(problem, g, statistics), statistics, at.steps + 1), cells


@dataclass(frozen=True)
class Steps:
    """Stochastic steps that a worker of a cluster makes, one after the other."""

    problem: CountProblem
    at: Running
    n_steps: int

    def __call__(self, matrix: CellMatrix, minibatches: Sequence[np.ndarray], cells: Cells) -> tuple[Running, Cells]:
        """What the steps have changed, and q of the cells of `matrix`, of which `minibatches` has positions."""
        at = self.at
        with with_threads_of_worker(), workers():
            for places, batch in blocks_of(matrix, minibatches, torch.device("cpu")):
                rows = torch.from_numpy(places)
                at, some = stochastic_step(self.problem, at, batch, cells.rows(rows), self.n_steps)
                cells = cells.put(rows, some)
        return at, cells
