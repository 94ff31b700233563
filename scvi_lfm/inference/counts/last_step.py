"""The last step on genes: coordinate ascent from all cells, to its end for genes that have far to go.

A gene whose counts sit in a few cells can need many steps, each no longer than trusted, where most need one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..._workers import meanwhile
from ...data.blocks import Blocks
from ..equations import TRUST, shortened
from ..normal.finish import OFF
from ..passes import average, pooled
from .dispersion import DispersionPrior
from .gene_step import HALF_WAY, cell_statistics, dispersions, solve_genes, with_genes
from .sweep import sweep

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ..minibatches import Minibatches
    from .state import Cells, CountGlobals, CountProblem, CountStatistics

STEPS = 50
# what is computed of a cell: where few genes are left, it takes more than its counts
TRIANGLES = 4
# nats per gene: a step that was expected to gain less was the last
ENOUGH = 0.1
# a factor that adds less than this to the precision of the average cell, whose prior has 1, is off
TOO_LITTLE = 1e-3


def step_of_all(
    problem: CountProblem, g: CountGlobals, cells: Cells, batches: Minibatches, share: float = HALF_WAY
) -> tuple[CountGlobals, Cells, CountStatistics]:
    """Step of every cell, then of the genes from all of them until none has anything to gain."""
    cells, statistics = sweep(problem, g, cells, batches)
    # a few genes tell little of all
    prior = DispersionPrior.learned(statistics, problem.n_cells) if problem.likelihood.learns_dispersion else None
    dispersion = meanwhile(partial(dispersions, problem, g, statistics, share, prior))
    solved = solve_genes(problem, g, statistics)
    g = with_genes(problem, g, statistics, solved, dispersion())
    return settle(problem, g, cells, solved.missing, batches.matrix, prior, share), cells, statistics


def settle(
    problem: CountProblem,
    g: CountGlobals,
    cells: Cells,
    missing: Tensor,
    matrix: CellMatrix,
    prior: DispersionPrior | None = None,
    share: float = HALF_WAY,
) -> CountGlobals:
    """Steps of the genes that are still on their way, as `missing` (m,) nats tell, cells and scales held.

    So are dispersions without a prior. Where steps do not bring a gene closer they swing around its optimum, and are
    made shorter.
    """
    genes, g = torch.arange(problem.n_genes, device=missing.device), g.copied()
    trust = torch.full_like(missing, TRUST)
    for _ in range(STEPS):
        open_ = missing > ENOUGH
        genes, trust, before = genes[open_], trust[open_], missing[open_]
        if len(genes) == 0:
            break
        # what is left of the last selection, so that later steps do not read all of the data again
        matrix = matrix.at_genes(open_.cpu().numpy())
        few, some = replace(problem, n_genes=len(genes)), g.at(genes)
        fresh = statistics_of_all(few, some, cells, matrix)
        solved = solve_genes(few, some, fresh)
        missing = solved.missing
        trust = shortened(trust, missing, before)
        solved = solved.within(some.gene_mean, trust)
        dispersion = some.dispersion
        if prior is not None:
            # of all genes, as each is shrunk towards the others
            dispersion = dispersions(few, some, fresh, share, prior)
            # where loadings and dispersions swing against each other, the steps of both are shorter
            dispersion = some.dispersion * (dispersion / some.dispersion) ** (trust / TRUST)
        g = g.put(genes, solved.mean, solved.cov, dispersion)
    return g


def statistics_of_all(problem: CountProblem, g: CountGlobals, cells: Cells, matrix: CellMatrix) -> CountStatistics:
    """Averages over all cells for the genes of `matrix`."""
    features, n = g.features(cells), problem.n_cells

    def of_block(batch: Batch, some: Cells) -> tuple[int, CountStatistics]:
        own = some.with_own_cov()
        new = cell_statistics(problem, g, features, batch.dense(), own, observed=batch.is_observed())
        return batch.n_cells, new

    blocks = Blocks.of_size(matrix, g.mu.device, width=TRIANGLES * features.packed_size)
    parts = [cells.part(place) for place in blocks.places]
    return average(blocks.each(of_block, parts, pool=pooled), n)


def without_unused(g: CountGlobals, cells: Cells, statistics: CountStatistics) -> tuple[CountGlobals, Cells]:
    """Genes and cells without the factors that are off."""
    if g.n_factors == 0:
        return g, cells
    first = 1 + g.n_known
    squares = g.gene_squares()[first:]
    gained = statistics.weighted[:, 0].double() @ g.gene_mean[:, first:].double().square()
    on = torch.nonzero((squares > OFF * squares.amax()) & (gained * g.scales.A.square() > TOO_LITTLE)).flatten()
    return g.at_factors(on), cells.at_factors(on, g.n_known)
