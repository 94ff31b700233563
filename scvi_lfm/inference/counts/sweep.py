"""Every cell once under the same genes, and what all of them say about the genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...posterior.rates import GeneFeatures
from .cell_step import cell_step
from .gene_step import cell_statistics
from .state import cell_prior

if TYPE_CHECKING:
    from tqdm.std import tqdm

    from ..minibatches import Minibatches
    from .state import Cells, Globals, Problem, Statistics


def sweep(
    problem: Problem,
    g: Globals,
    cells: Cells,
    statistics: Statistics,
    batches: Minibatches,
    steps: int = 1,
    every: int = 1,
    bar: tqdm | None = None,
) -> tuple[Cells, Statistics]:
    """q of the cells after some steps, and averages over them in place of `statistics`.

    What the dispersion needs is taken from one in `every` cells.
    """
    features, prior = GeneFeatures.of(g.gene_mean, g.gene_cov), cell_prior(g)
    statistics = statistics.scaled(0)
    for rows, batch in batches.numbered_epoch():
        y, observed = batch.dense(), batch.is_observed()
        some, half = cells.rows(rows), torch.empty_like(y)
        for _ in range(steps):
            some, _ = cell_step(problem, y, some, features, g.mu, g.dispersion, prior, observed=observed, half=half)
        cells = cells.put(rows, some)
        new = cell_statistics(problem, g, features, y, some, every, observed, half)
        statistics = statistics.plus(new, len(y) / problem.n_cells)
        if bar is not None:
            bar.update()
    return cells, statistics
