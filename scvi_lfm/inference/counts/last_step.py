"""The last step on genes: coordinate ascent from all cells, to its end for genes that have far to go.

A gene whose counts sit in a few cells can need many steps, each no longer than trusted, where most need one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...data.blocks import Blocks
from ...posterior.rates import GeneFeatures
from ..equations import TRUST, shortened
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
# nats per gene: a step that was expected to gain less was the last
ENOUGH = 0.1


def step_of_all(
    problem: CountProblem, g: CountGlobals, cells: Cells, batches: Minibatches, share: float = HALF_WAY
) -> tuple[CountGlobals, Cells, CountStatistics]:
    """Every cell once, then the genes from all of them until none has anything to gain."""
    cells, statistics = sweep(problem, g, cells, batches)
    solved = solve_genes(problem, g, statistics)
    g = with_genes(problem, g, statistics, solved, share)
    return _settle(problem, g, cells, statistics, solved.missing, batches, share), cells, statistics


def _settle(
    problem: CountProblem,
    g: CountGlobals,
    cells: Cells,
    statistics: CountStatistics,
    missing: Tensor,
    batches: Minibatches,
    share: float,
) -> CountGlobals:
    """Steps of the genes that are still on their way, cells and scales held.

    Where steps do not bring a gene closer they swing around its optimum, and are made shorter.
    """
    learns = problem.likelihood.learns_dispersion
    # a few genes tell little of all
    prior = DispersionPrior.learned(statistics, problem.n_cells) if learns else None
    genes, matrix = torch.arange(problem.n_genes, device=missing.device), batches.matrix
    trust = torch.full_like(missing, TRUST)
    for _ in range(STEPS):
        open_ = missing > ENOUGH
        genes, trust, before = genes[open_], trust[open_], missing[open_]
        if len(genes) == 0:
            break
        # what is left of the last selection, so that later steps do not read all of the data again
        matrix = matrix.at_genes(open_.cpu().numpy())
        few, some = replace(problem, n_genes=len(genes)), g.at(genes)
        fresh = _statistics(few, some, cells, matrix)
        solved = solve_genes(few, some, fresh)
        missing = solved.missing
        trust = shortened(trust, missing, before)
        solved = solved.within(some.gene_mean, trust)
        dispersion = some.dispersion
        if learns:
            # of all genes, as each is shrunk towards the others
            dispersion = dispersions(few, some, fresh, share, prior)
            # where loadings and dispersions swing against each other, the steps of both are shorter
            dispersion = some.dispersion * (dispersion / some.dispersion) ** (trust / TRUST)
        g = g.put(genes, solved.mean, solved.cov, dispersion)
    return g


def _statistics(problem: CountProblem, g: CountGlobals, cells: Cells, matrix: CellMatrix) -> CountStatistics:
    """Averages over all cells for the genes of `matrix`."""
    features, n = GeneFeatures.of(g.gene_mean, g.gene_cov), problem.n_cells

    def of_block(batch: Batch, some: Cells) -> tuple[int, CountStatistics]:
        own = some.with_own_cov()
        new = cell_statistics(problem, g, features, batch.dense(), own, observed=batch.is_observed())
        return batch.n_cells, new

    blocks = Blocks.of_size(matrix, g.mu.device)
    parts = [cells.part(place) for place in blocks.places]
    return average(blocks.each(of_block, parts, pool=pooled), n)
