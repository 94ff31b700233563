"""Cells under the same genes, in one batch or all of them, and what they say about the genes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..course import WHOLE, Pass, Place
from ..passes import added, pooled_with
from ..progress import Progress
from .cell_step import cell_step
from .gene_step import EVERYONE, Asked, cell_statistics
from .state import Cells

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ...posterior.rates import GeneFeatures
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

    What the dispersion needs is taken from one in `every` cells of each minibatch. On a cluster all cells are visited
    at once. Where a pass ends before the last minibatch, averages are sums over the cells that it saw, over the number
    of all.
    """
    features, bar = g.features(cells), bar or Progress()
    visited = partial(visit, problem, g, features, steps=steps)
    if batches.cluster is not None and pass_.most is None:
        at = _sweep_at_once(visited, cells, batches, every, pass_)
        for _ in range(batches.count - pass_.n_seen):
            bar.update()
        return at.state, at.sums

    asked = Asked(slice(None, None, every), batches.share_of_one_in(every))

    def step(at: Place[Cells], minibatch: tuple[Tensor, Batch]) -> Callable[[], Place[Cells]]:
        rows, batch = minibatch
        some, new = visited(batch, at.state.rows(rows), asked=asked)
        sums = added(at.sums, new, batch.n_cells / problem.n_cells)
        return lambda: at.after(at.state.put(rows, some), sums)

    at = pass_.through(cells, batches.numbered_epoch(pass_.n_seen), step, bar)
    return at.state, at.sums


def _sweep_at_once(
    visited: Callable[..., tuple[Cells, CountStatistics]],
    cells: Cells,
    batches: Minibatches,
    every: int,
    pass_: Pass[Cells],
) -> Place[Cells]:
    """The place after all that is left of an epoch, visited at once on a cluster."""
    places, blocks, asked = batches.rest(pass_.n_seen, every)
    n = blocks.n_cells
    if n == 0:
        return Place(cells, pass_.n_seen, pass_.sums)
    rows = torch.from_numpy(places)
    left = cells if pass_.n_seen == 0 else cells.part(rows)
    keep = left.keeps_cov

    def of_block(batch: Batch, some: Cells, asked: Asked) -> tuple[int, CountStatistics, list[Cells]]:
        new, statistics = visited(batch, some.with_own_cov(), asked=asked)
        return batch.n_cells, statistics, [new if keep else replace(new, cov=new.cov.mean(0, keepdim=True))]

    some, share = [left.part(place) for place in blocks.places], batches.share_of_one_in(every)
    of_blocks = _of_blocks(blocks, asked, share) if every > 1 else [EVERYONE] * len(some)
    _, new, found = pooled_with(blocks.each(of_block, some, of_blocks, pool=pooled_with), n)
    sums = added(pass_.sums, new, n / len(cells.mean))
    return pass_.keep(lambda: Place(cells.put(rows, Cells.joined(found)), batches.count, sums))


def _of_blocks(blocks: Blocks, asked: np.ndarray, share: float) -> list[Asked]:
    """Which cells of each block are asked, from their increasing positions among all."""
    edges = [(place, *np.searchsorted(asked, (place.start, place.stop))) for place in blocks.places]
    return [Asked(torch.from_numpy(asked[first:last] - place.start), share) for place, first, last in edges]


def visit(
    problem: CountProblem,
    g: CountGlobals,
    features: GeneFeatures,
    batch: Batch,
    cells: Cells,
    steps: int,
    asked: Asked = EVERYONE,
) -> tuple[Cells, CountStatistics]:
    """q of the cells of a batch after some steps, and averages over them; `features` are those of the genes in `g`."""
    y, observed, prior = batch.dense(), batch.is_observed(), g.cell_prior
    for _ in range(steps):
        cells, _ = cell_step(problem, y, cells, features, g.mu, g.parameters, prior, observed=observed)
    return cells, cell_statistics(problem, g, features, y, cells, asked, observed)
