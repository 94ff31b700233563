"""The natural-gradient engine's loop: minibatches, rates, stopping, and a last pass that gives every cell its q."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..model.priors import rotation_is_free
from .convergence import remaining_gap
from .elbo import elbo, kl_genes, kl_mu
from .finish import Trace, drop_unused_factors, finish
from .initialisation import add_random_factors, fit_without_factors
from .minibatches import Minibatches
from .progress import progress_bar
from .sweep import LocalStep, Problem, sweep

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm.std import tqdm

    from ..data import CellMatrix
    from .options import FitOptions, FitResult
    from .state import Globals
    from .sweep import Step

# rates (t + DELAY)^-FORGETTING of the running averages (Hoffman et al. 2013, section 2.4)
DELAY, FORGETTING = 1.0, 0.7
WINDOWS_PER_EPOCH = 4
LOST_IN_FLOAT32 = 1e-4


def fit_natural_gradient(matrix: CellMatrix, options: FitOptions) -> FitResult:
    """Closed-form stochastic variational inference; one batch of all cells makes it coordinate ascent."""
    n_cells, n_genes = matrix.shape
    problem = Problem(n_cells, n_genes, options.family, options.noise, rotation_is_free(options.prior_scales))
    batches = Minibatches(
        matrix, options.batch_size, options.device, options.dtype, np.random.default_rng(options.seed)
    )
    first = batches.first()
    step = fit_without_factors(problem, first, options.prior_scales)
    rank0 = _per_entry(problem, step)
    if options.n_factors:
        generator = torch.Generator().manual_seed(options.seed)
        step = add_random_factors(problem, step.globals, first, options.n_factors, options.prior_scales, generator)

    if options.dtype == torch.float32 and _noise_is_lost(step):
        return fit_natural_gradient(matrix, replace(options, dtype=torch.float64))
    # a factor is worth having if its n + m latents gain about a nat each
    one_nat_each = options.n_factors * (n_cells + n_genes) / (n_cells * n_genes)
    trace: list[tuple[float, float]] = []
    converged = False
    with progress_bar(options.max_epochs * batches.count, shown=options.progress) as bar:
        for epoch in range(1, options.max_epochs + 1):
            run = _sweep_all_cells if batches.count == 1 else _pass_over_minibatches
            step, values = run(problem, step, batches, epoch, bar)
            trace += _windows(epoch, values)
            converged = remaining_gap([value for _, value in trace], rank0, one_nat_each) < options.tol
            if converged:
                break
    step = drop_unused_factors(problem, step)
    return finish(problem, step, batches, Trace(trace, rank0, converged))


def _noise_is_lost(step: Step) -> bool:
    """Whether the noise is so small beside the values that sums of float32 squares do not show it."""
    return bool(step.globals.precision.reciprocal().mean() < LOST_IN_FLOAT32 * step.statistics.yy.mean())


def _per_entry(problem: Problem, step: Step) -> float:
    value = elbo(step.globals, step.statistics, step.cell_cov, problem.n_cells)
    return float(value) / (problem.n_cells * problem.n_genes)


def _sweep_all_cells(
    problem: Problem, step: Step, batches: Minibatches, epoch: int, bar: tqdm
) -> tuple[Step, list[float]]:
    """One sweep of coordinate ascent, and its ELBO per entry."""
    for batch in batches.epoch(epoch):
        step = sweep(problem, step.globals, batch)
        bar.update()
    return step, [_per_entry(problem, step)]


def _pass_over_minibatches(
    problem: Problem, step: Step, batches: Minibatches, epoch: int, bar: tqdm
) -> tuple[Step, list[float]]:
    """One epoch of stochastic steps, and an estimate of the ELBO per entry at each.

    Cells differ more from batch to batch than the ELBO does from step to step, so each batch is also measured under
    the genes that the epoch began with: the estimate is their ELBO over the epoch, plus what this batch gained.
    """
    at_start, start_kl = LocalStep(problem, step.globals), _global_kl(step.globals) / problem.n_cells
    gains, baseline = [], []
    for position, batch in enumerate(batches.epoch(epoch)):
        reference = at_start(batch).local_elbo - start_kl
        before = _global_kl(step.globals) / problem.n_cells
        taken = (epoch - 1) * batches.count + position + 1
        step = sweep(problem, step.globals, batch, step.statistics, (taken + DELAY) ** -FORGETTING)
        gains.append(step.local_elbo - before - reference)
        baseline.append(reference)
        bar.update()
    estimates = (torch.stack(baseline).mean() + torch.stack(gains)) / problem.n_genes
    return step, estimates.tolist()


def _global_kl(g: Globals) -> Tensor:
    return kl_genes(g) + kl_mu(g)


def _windows(epoch: int, values: list[float]) -> list[tuple[float, float]]:
    """Means over quarters of an epoch, each at its end; single steps where there are fewer."""
    parts = np.array_split(np.asarray(values), min(WINDOWS_PER_EPOCH, len(values)))
    ends = epoch - 1 + np.arange(1, len(parts) + 1) / len(parts)
    return [(float(end), float(part.mean())) for end, part in zip(ends, parts, strict=True)]
