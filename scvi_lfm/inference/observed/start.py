"""Starting points: the model without factors, then with those of a quick fit to what it leaves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...data import CellMatrix
from ...data.less_margins import LessMargins
from ...linalg.packed import pack, packed_size
from ...model.priors import initial_scales
from ..normal.start import location_and_spread, sums
from ..passes import average, pooled, pooled_with
from .state import ObservedGlobals, Rows
from .steps import CellStep, cell_statistics, gene_step, global_kl, local_elbo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ..state import Problem
    from .state import ObservedStatistics

MARGIN_SWEEPS = 6
# variance of the factors of a cell, whose prior is 1, before its own values are looked at
START_VAR = 0.05
TINY = 1e-8


def statistics_of(step: CellStep, blocks: Blocks) -> tuple[ObservedStatistics, list[Rows]]:
    """Averages over some cells, and q of each block of them."""
    _, statistics, cells = pooled_with(blocks.each(partial(_visit, step), pool=pooled_with), blocks.n_cells)
    return statistics, cells


def _visit(step: CellStep, batch: Batch) -> tuple[int, ObservedStatistics, list[Rows]]:
    rows = step(batch)
    return batch.n_cells, cell_statistics(batch, rows), [rows]


def average_of(blocks: Blocks, cells: Sequence[Rows]) -> ObservedStatistics:
    """Averages over some cells, given q of each block."""
    parts = blocks.each(lambda batch, rows: (batch.n_cells, cell_statistics(batch, rows)), cells, pool=pooled)
    return average(parts, blocks.n_cells)


def fit_margins(
    problem: Problem, blocks: Blocks, prior_scales: Mapping[str, object]
) -> tuple[ObservedGlobals, list[Rows], float]:
    """Coordinate ascent on mu + a_i + b_j alone; q of the cells, and the ELBO per observed entry."""
    mean, spread = location_and_spread(blocks.each(sums))
    sigma = torch.as_tensor(prior_scales.get("sigma", spread), dtype=spread.dtype, device=spread.device)
    n, m, dtype = blocks.n_cells, problem.n_genes, blocks.dtype
    g = ObservedGlobals(
        mu=mean,
        mu_var=torch.ones_like(mean),
        gene_mean=mean.new_zeros(m, 1),
        gene_cov=(spread.square() / n).to(dtype).expand(m, 1),
        gene_log_det=mean.new_zeros(()),
        precision=sigma.square().reciprocal().expand(m),
        scales=initial_scales(0, prior_scales, spread),
    )
    for _ in range(MARGIN_SWEEPS):
        statistics, cells = statistics_of(CellStep.of(g, problem.family), blocks)
        g, squares = gene_step(problem, g, statistics)
    observed = statistics.observed().sum()
    value = (local_elbo(g, statistics, squares) - global_kl(g) / problem.n_cells) / observed
    return g, cells, float(value)


def left_over(matrix: CellMatrix, g: ObservedGlobals, activity: np.ndarray) -> CellMatrix:
    """Residuals of stored values after the margins; where all entries are data, the values themselves."""
    if not matrix.only_stored:
        return replace(matrix, held_out=None)
    abundance = (g.mu + g.gene_mean[:, 0]).cpu().numpy()
    left = LessMargins(matrix.source, matrix.level, activity, abundance)
    return CellMatrix(left, covariates=matrix.covariates)


def add_factors(
    problem: Problem,
    g: ObservedGlobals,
    blocks: Blocks,
    activity: list[Rows],
    factors: Tensor,
    prior_scales: Mapping[str, object],
) -> tuple[ObservedGlobals, ObservedStatistics]:
    """Genes, given factors (cells, r) of the cells of some blocks; all are relevant until the genes have moved."""
    r, dtype = factors.shape[1], g.gene_cov.dtype
    g = g.with_more_factors(r, prior_scales, location_and_spread(blocks.each(sums))[1])
    g = replace(g, gene_cov=g.gene_cov.new_zeros(problem.n_genes, packed_size(r + 1)))
    scales = g.scales
    factors = factors.double() / factors.double().square().mean(0).sqrt().clamp_min(TINY) * scales.A
    parts = []
    for rows, some in zip(activity, blocks.split(factors), strict=True):
        mean = torch.cat([rows.mean, some], dim=1)
        var = torch.cat([rows.cov.double(), (START_VAR * scales.A.square()).expand(len(some), -1)], dim=1)
        parts.append(Rows(mean, pack(torch.diag_embed(var)).to(dtype), var.log().sum()))
    total = average_of(blocks, parts)
    g, _ = gene_step(problem, g, total)
    return replace(g, scales=replace(g.scales, B=scales.B)), total
