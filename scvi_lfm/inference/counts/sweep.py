"""Cells under the same genes, in one batch or all of them, and what they say about the genes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...posterior.rates import GeneFeatures
from ..course import WHOLE, Pass, Place
from ..passes import added, average_with
from ..progress import Progress
from .cell_step import cell_step
from .gene_step import cell_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ..minibatches import Minibatches
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
    directions: Tensor | None = None,
) -> tuple[Cells, CountStatistics]:
    """q of the cells after some steps, and averages over them; q of cells is written in place.

    What the dispersion needs is taken from one in `every` cells. Half the variances of eta are exact, or along few
    directions, with `directions` (p, q) for the cells' covariances. On a cluster all cells are visited at once.
    """
    features = GeneFeatures.of(g.gene_mean, g.gene_cov).in_few_directions(directions)
    everyone, bar = batches.everyone, bar or Progress()
    if everyone.on_cluster and pass_.n_seen == 0:
        found, sums = _visit_all(problem, g, features, everyone, cells, steps, every)
        at = pass_.keep(lambda: Place(cells.put_all(found), batches.count, sums))
        for _ in range(batches.count):
            bar.update()
        return at.state, at.sums

    def step(at: Place[Cells], minibatch: tuple[Tensor, Batch]) -> Callable[[], Place[Cells]]:
        rows, batch = minibatch
        some, new = visit(problem, g, features, batch, at.state.rows(rows), steps, every)
        sums = added(at.sums, new, batch.n_cells / problem.n_cells)
        return lambda: at.after(at.state.put(rows, some), sums)

    at = pass_.through(cells, batches.numbered_epoch(pass_.n_seen), step, bar)
    return at.state, at.sums


_Visited = tuple[int, "CountStatistics", list["Cells"]]


def _visit_all(
    problem: CountProblem,
    g: CountGlobals,
    features: GeneFeatures,
    blocks: Blocks,
    cells: Cells,
    steps: int,
    every: int,
) -> tuple[list[Cells], CountStatistics]:
    """q of the cells of each block after some steps, and averages over all."""
    keep = cells.keeps_cov

    def of_block(batch: Batch, some: Cells) -> _Visited:
        new, statistics = visit(problem, g, features, batch, some.with_own_cov(), steps, every)
        return batch.n_cells, statistics, [new if keep else replace(new, cov=new.cov.mean(0, keepdim=True))]

    parts = [cells.part(place) for place in blocks.places]
    _, statistics, found = _pooled(blocks.each(of_block, parts, pool=_pooled), problem.n_cells)
    return found, statistics


def _pooled(blocks: Iterable[_Visited], n_cells: int) -> _Visited:
    statistics, cells = average_with(blocks, n_cells)
    return n_cells, statistics, [part for some in cells for part in some]


def visit(
    problem: CountProblem, g: CountGlobals, features: GeneFeatures, batch: Batch, cells: Cells, steps: int, every: int
) -> tuple[Cells, CountStatistics]:
    """q of the cells of a batch after some steps, and averages over them; `features` are those of the genes in `g`."""
    y, observed, prior = batch.dense(), batch.is_observed(), g.cell_prior
    half = torch.empty_like(y)
    for _ in range(steps):
        cells, _ = cell_step(problem, y, cells, features, g.mu, g.parameters, prior, observed=observed, half=half)
    return cells, cell_statistics(problem, g, features, y, cells, every, observed, half)
