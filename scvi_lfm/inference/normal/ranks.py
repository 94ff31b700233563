"""Fewer factors for the Normal: the bound of every smaller rank, from averages over cells alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..ranks import GENE_STEPS, RankCurve, effective_factors
from .elbo import elbo
from .sweep import Step, gene_step, keep_factors

if TYPE_CHECKING:
    from ..state import Problem


def normal_curve(problem: Problem, step: Step) -> RankCurve:
    """The curve of a Normal fit: closed forms of the averages over cells, without a look at the data."""
    values, r = [], step.globals.n_factors
    effective = effective_factors(step.statistics.xx, step.cell_cov, r)
    for k in range(r, -1, -1):
        if k < r:
            step = leading_factors(problem, step, k)
        values.append(elbo(step.globals, step.statistics, step.cell_cov, problem.n_cells))
    n_entries = problem.n_cells * problem.n_genes
    return RankCurve((torch.stack(values[::-1]) / n_entries).tolist(), effective)


def leading_factors(problem: Problem, step: Step, n_factors: int) -> Step:
    """The step with its leading factors alone, and the rest of the model fitted to what cells say of them."""
    kept = torch.arange(n_factors, device=step.globals.mu.device)
    step = keep_factors(problem, step, kept)
    for _ in range(GENE_STEPS):
        step = Step(*gene_step(problem, step.globals, step.statistics, step.cell_cov), step.local_elbo)
    return step
