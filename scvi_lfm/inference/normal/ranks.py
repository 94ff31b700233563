"""Fewer factors for the Normal: the bound of every smaller rank, from averages over cells alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from ..ranks import GENE_STEPS, RankCurve, effective_factors, rank_curve
from .elbo import elbo
from .sweep import Step, gene_step, keep_factors

if TYPE_CHECKING:
    from ..state import Problem


def normal_curve(problem: Problem, step: Step) -> RankCurve:
    """The curve of a Normal fit: closed forms of the averages over cells, without a look at the data."""
    r = step.globals.n_factors
    effective = effective_factors(step.statistics.xx, step.cell_cov, r)
    return rank_curve(step, r, effective, partial(leading_factors, problem), partial(elbo_per_entry, problem))


def elbo_per_entry(problem: Problem, step: Step) -> float:
    """ELBO of the whole data set over the number of its entries."""
    value = elbo(step.globals, step.statistics, step.cell_cov, problem.n_cells)
    return float(value) / problem.n_entries


def leading_factors(problem: Problem, step: Step, n_factors: int) -> Step:
    """The step with its leading factors alone, and the rest of the model fitted to what cells say of them."""
    kept = torch.arange(n_factors, device=step.globals.mu.device)
    step = keep_factors(problem, step, kept)
    for _ in range(GENE_STEPS):
        step = Step(*gene_step(problem, step.globals, step.statistics, step.cell_cov), step.local_elbo)
    return step
