"""Cells under the same genes, in one batch or all of them, and what they say about the genes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
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
    visited = partial(visit, problem, g, features, steps=steps, every=every)
    if batches.cluster is not None and pass_.most is None:
        at = _sweep_at_once(visited, cells, batches, pass_)
        for _ in range(batches.count - pass_.n_seen):
            bar.update()
        return at.state, at.sums

    def step(at: Place[Cells], minibatch: tuple[Tensor, Batch]) -> Callable[[], Place[Cells]]:
        rows, batch = minibatch
        some, new = visited(batch, at.state.rows(rows))
        sums = added(at.sums, new, batch.n_cells / problem.n_cells)
        return lambda: at.after(at.state.put(rows, some), sums)

    at = pass_.through(cells, batches.numbered_epoch(pass_.n_seen), step, bar)
    return at.state, at.sums


def _sweep_at_once(
    visited: Callable[..., tuple[Cells, CountStatistics]], cells: Cells, batches: Minibatches, pass_: Pass[Cells]
) -> Place[Cells]:
    """The place after all that is left of an epoch, visited at once on a cluster."""
    places, blocks = batches.rest(pass_.n_seen)
    n = blocks.n_cells
    if n == 0:
        return Place(cells, pass_.n_seen, pass_.sums)
    rows = torch.from_numpy(places)
    left = cells if pass_.n_seen == 0 else cells.part(rows)
    keep = left.keeps_cov

    def of_block(batch: Batch, some: Cells, first: int) -> tuple[int, CountStatistics, list[Cells]]:
        new, statistics = visited(batch, some.with_own_cov(), among=(first, n))
        return batch.n_cells, statistics, [new if keep else replace(new, cov=new.cov.mean(0, keepdim=True))]

    parts = [left.part(place) for place in blocks.places], [place.start for place in blocks.places]
    _, new, found = pooled_with(blocks.each(of_block, *parts, pool=pooled_with), n)
    sums = added(pass_.sums, new, n / len(cells.mean))
    return pass_.keep(lambda: Place(cells.put(rows, Cells.joined(found)), batches.count, sums))


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
