"""Cells under the same genes, in one batch or all of them, and what they say about the genes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from ...posterior.rates import GeneFeatures
from ..course import WHOLE, Pass, Place
from ..passes import added
from .cell_step import cell_step
from .gene_step import cell_statistics

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch
    from ..minibatches import Minibatches
    from ..progress import Progress
    from .state import Cells, CountGlobals, CountProblem, CountStatistics


def sweep(
    problem: CountProblem,
    g: CountGlobals,
    cells: Cells,
    batches: Minibatches,
    steps: int = 1,
    every: int = 1,
    bar: Progress | None = None,
    pass_: Pass[Cells] = WHOLE,
) -> tuple[Cells, CountStatistics]:
    """q of the cells after some steps, and averages over them; q of cells is written in place.

    What the dispersion needs is taken from one in `every` cells.
    """
    features, at = GeneFeatures.of(g.gene_mean, g.gene_cov), Place(cells, pass_.n_seen, pass_.sums)
    for rows, batch in batches.numbered_epoch(pass_.n_seen):
        some, new = visit(problem, g, features, batch, at.state.rows(rows), steps, every)
        sums = added(at.sums, new, batch.n_cells / problem.n_cells)
        at = pass_.keep(partial(_after, at, rows, some, sums))
        if bar is not None:
            bar.update()
    return at.state, at.sums


def _after(at: Place[Cells], rows: Tensor, some: Cells, sums: CountStatistics) -> Place[Cells]:
    return Place(at.state.put(rows, some), at.n_seen + 1, sums)


def visit(
    problem: CountProblem, g: CountGlobals, features: GeneFeatures, batch: Batch, cells: Cells, steps: int, every: int
) -> tuple[Cells, CountStatistics]:
    """q of the cells of a batch after some steps, and averages over them; `features` are those of the genes in `g`."""
    y, observed, prior = batch.dense(), batch.is_observed(), g.cell_prior
    half = torch.empty_like(y)
    for _ in range(steps):
        cells, _ = cell_step(problem, y, cells, features, g.mu, g.parameters, prior, observed=observed, half=half)
    return cells, cell_statistics(problem, g, features, y, cells, every, observed, half)
