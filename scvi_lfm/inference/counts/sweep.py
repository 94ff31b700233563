"""Cells under the same genes, in one batch or all of them, and what they say about the genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...posterior.rates import GeneFeatures
from ..passes import average
from .cell_step import cell_step
from .gene_step import cell_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

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
) -> tuple[Cells, CountStatistics]:
    """q of the cells after some steps, and averages over them; q of cells is written in place.

    What the dispersion needs is taken from one in `every` cells.
    """
    features, after = GeneFeatures.of(g.gene_mean, g.gene_cov), [cells]

    def blocks() -> Iterator[tuple[int, CountStatistics]]:
        for rows, batch in batches.numbered_epoch():
            some, new = visit(problem, g, features, batch, after[0].rows(rows), steps, every)
            after[0] = after[0].put(rows, some)
            if bar is not None:
                bar.update()
            yield batch.n_cells, new

    statistics = average(blocks(), problem.n_cells)
    return after[0], statistics


def visit(
    problem: CountProblem, g: CountGlobals, features: GeneFeatures, batch: Batch, cells: Cells, steps: int, every: int
) -> tuple[Cells, CountStatistics]:
    """q of the cells of a batch after some steps, and averages over them; `features` are those of the genes in `g`."""
    y, observed, prior = batch.dense(), batch.is_observed(), g.cell_prior
    half = torch.empty_like(y)
    for _ in range(steps):
        cells, _ = cell_step(problem, y, cells, features, g.mu, g.parameters, prior, observed=observed, half=half)
    return cells, cell_statistics(problem, g, features, y, cells, every, observed, half)
