"""Cells under the same genes, in one batch or all of them, and what they say about the genes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...posterior.rates import GeneFeatures
from ..course import WHOLE, Pass, Place
from ..passes import added, pooled_with
from ..progress import Progress
from .cell_step import cell_step
from .gene_step import cell_statistics
from .state import Cells

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ..minibatches import Minibatches
    from .state import CountGlobals, CountProblem, CountStatistics


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

    What the dispersion needs is taken from one in `every` cells. On a cluster all cells are visited at once. Where a
    pass ends before the last minibatch, averages are sums over the cells that it saw, over the number of all.
    """
    features, bar = GeneFeatures.of(g.gene_mean, g.gene_cov), bar or Progress()
    if batches.cluster is not None and pass_.most is None:
        at = _sweep_at_once(problem, g, features, cells, batches, steps, every, pass_)
        for _ in range(batches.count - pass_.n_seen):
            bar.update()
        return at.state, at.sums

    def step(at: Place[Cells], minibatch: tuple[Tensor, Batch]) -> Callable[[], Place[Cells]]:
        rows, batch = minibatch
        some, new = visit(problem, g, features, batch, at.state.rows(rows), steps, every)
        sums = added(at.sums, new, batch.n_cells / problem.n_cells)
        return lambda: at.after(at.state.put(rows, some), sums)

    at = pass_.through(cells, batches.numbered_epoch(pass_.n_seen), step, bar)
    return at.state, at.sums


def _sweep_at_once(
    problem: CountProblem,
    g: CountGlobals,
    features: GeneFeatures,
    cells: Cells,
    batches: Minibatches,
    steps: int,
    every: int,
    pass_: Pass[Cells],
) -> Place[Cells]:
    """The place after all that is left of an epoch, visited at once on a cluster."""
    places, blocks = batches.rest(pass_.n_seen)
    if blocks.n_cells == 0:
        return Place(cells, pass_.n_seen, pass_.sums)
    rows = torch.from_numpy(places)
    some = cells if pass_.n_seen == 0 else cells.part(rows)
    found, new = _visit_all(problem, g, features, blocks, some, steps, every)
    sums = added(pass_.sums, new, blocks.n_cells / problem.n_cells)
    return pass_.keep(lambda: Place(cells.put(rows, Cells.joined(found)), batches.count, sums))


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
    keep, n, places = cells.keeps_cov, blocks.n_cells, blocks.places

    def of_block(batch: Batch, some: Cells, first: int) -> tuple[int, CountStatistics, list[Cells]]:
        new, statistics = visit(problem, g, features, batch, some.with_own_cov(), steps, every, (first, n))
        return batch.n_cells, statistics, [new if keep else replace(new, cov=new.cov.mean(0, keepdim=True))]

    parts = [cells.part(place) for place in places], [place.start for place in places]
    _, statistics, found = pooled_with(blocks.each(of_block, *parts, pool=pooled_with), n)
    return found, statistics


def visit(
    problem: CountProblem,
    g: CountGlobals,
    features: GeneFeatures,
    batch: Batch,
    cells: Cells,
    steps: int,
    every: int,
    among: tuple[int, int] | None = None,
) -> tuple[Cells, CountStatistics]:
    """q of the cells of a batch after some steps, and averages over them; `features` are those of the genes in `g`."""
    y, observed, prior = batch.dense(), batch.is_observed(), g.cell_prior
    half = torch.empty_like(y)
    for _ in range(steps):
        cells, _ = cell_step(problem, y, cells, features, g.mu, g.parameters, prior, observed=observed, half=half)
    return cells, cell_statistics(problem, g, features, y, cells, every, observed, half, among)
