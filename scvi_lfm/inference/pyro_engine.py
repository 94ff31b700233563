"""Black-box stochastic variational inference through Pyro, on the program of the model: the reference engine.

Reparameterised gradients of the minibatch ELBO, in which Pyro's plate scales a batch by n / |batch|. Cells take part
only when they are drawn: their means get sparse gradients and a sparse optimiser, because the momentum of a dense one
would move cells outside the batch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._context import pyro_sandbox
from ..model.priors import initial_scales
from .elbo import elbo
from .finish import Trace, summarise, to_result
from .initialisation import fit_without_factors, location_and_spread
from .minibatches import Minibatches
from .progress import progress_bar
from .pyro_parameters import CellParameters, SharedParameters
from .sweep import CellBlock, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..data import Batch, CellMatrix
    from .options import FitOptions, FitResult

# the learning rate is halved whenever the smoothed ELBO has stood still, and the fit ends after this many halvings
HALVINGS = 7
PATIENCE_STEPS = 150
SMOOTHING_STEPS = 50


def fit_pyro(matrix: CellMatrix, options: FitOptions) -> FitResult:
    """Fit by gradients of the Pyro program."""
    n_cells, n_genes = matrix.shape
    problem = Problem(n_cells, n_genes, options.guide, options.noise)
    batches = Minibatches(
        matrix, options.batch_size, options.device, options.dtype, np.random.default_rng(options.seed)
    )
    base = fit_without_factors(problem, batches.first(), options.prior_scales)
    rank0 = float(elbo(base.globals, base.statistics, base.cell_cov, n_cells)) / (n_cells * n_genes)
    cells, shared = _start(problem, batches, options)
    with pyro_sandbox(options.seed, options.device):
        values, converged = _optimise(problem, batches, cells, shared, options, rank0)
    blocks = _blocks(batches, cells, shared)
    return to_result(summarise(problem, shared.globals(), blocks), Trace(values, rank0, converged))


def _start(problem: Problem, batches: Minibatches, options: FitOptions) -> tuple[CellParameters, SharedParameters]:
    """Means of the data for mu and b, small random factors, wide noise."""
    first = batches.first()
    ones = torch.ones(first.n_cells, 1, device=options.device)
    gene_means = (first.times_cells(ones)[:, 0] / first.n_cells).float()
    mean, spread = location_and_spread(first, problem)
    mu, spread = mean.float(), spread.float()
    generator = torch.Generator().manual_seed(options.seed)
    size = options.n_factors + 1
    cell_loc = 0.1 * torch.randn(problem.n_cells, size, generator=generator)
    gene_loc = 0.1 * torch.randn(problem.n_genes, size, generator=generator)
    gene_loc = torch.cat([(gene_means - mu).cpu()[:, None], gene_loc[:, 1:]], dim=1)
    given = options.prior_scales
    sigma = torch.as_tensor(given["sigma"]).to(spread) if "sigma" in given else spread
    sigma = sigma.expand(problem.n_genes if options.noise == "gene" else 1)
    scales = initial_scales(options.n_factors, given, spread.double())
    shared = SharedParameters(gene_loc.to(options.device), mu, sigma, scales, options.guide)
    return CellParameters(cell_loc.to(options.device)), shared


def _optimise(
    problem: Problem,
    batches: Minibatches,
    cells: CellParameters,
    shared: SharedParameters,
    options: FitOptions,
    rank0: float,
) -> tuple[list[tuple[float, float]], bool]:
    from pyro.infer import TraceMeanField_ELBO

    from ..model.program import guide, mean_field_guide, model

    program = guide if options.guide == "row_block" else mean_field_guide
    objective = TraceMeanField_ELBO()
    n_cells = problem.n_cells
    optimisers = [
        torch.optim.Adam([p for p in shared.parameters() if p.requires_grad], lr=options.learning_rate),
        torch.optim.SparseAdam(cells.parameters(), lr=options.learning_rate),
    ]
    schedule = Schedule(optimisers, options.tol)
    values: list[tuple[float, float]] = []
    with progress_bar(options.max_epochs * batches.count, shown=options.progress) as bar:
        for epoch in range(1, options.max_epochs + 1):
            losses = []
            for rows, batch in batches.numbered_epoch():
                q = shared.guide(cells(rows))
                loss = objective.differentiable_loss(
                    partial(model, scales=shared.scales(), n_cells=n_cells, rows=rows),
                    partial(program, q=q, n_cells=n_cells, rows=rows),
                    batch.dense(),
                )
                for optimiser in optimisers:
                    optimiser.zero_grad()
                loss.backward()
                for optimiser in optimisers:
                    optimiser.step()
                losses.append(loss.detach())
                bar.update()
            mean = -float(torch.stack(losses).mean()) / (n_cells * problem.n_genes)
            values.append((float(epoch), mean))
            if schedule.ends(mean, rank0, batches.count):
                return values, True
    return values, False


def _blocks(batches: Minibatches, cells: CellParameters, shared: SharedParameters) -> Iterator[tuple[Batch, CellBlock]]:
    start, cov = 0, shared.cell_cov()
    for batch in batches.in_order():
        mean = cells.loc.detach()[start : start + batch.n_cells].double()
        yield batch, CellBlock(mean, cov, cov.new_zeros(()))
        start += batch.n_cells


class Schedule:
    """Halves the learning rates when the smoothed ELBO stands still, and ends the fit when they are small."""

    def __init__(self, optimisers: list[torch.optim.Optimizer], tol: float) -> None:
        self._optimisers, self._tol = optimisers, tol
        self._smoothed = self._best = -float("inf")
        self._steps_since_best = self._halved = 0

    def ends(self, value: float, rank0: float, steps: int) -> bool:
        """Take the mean ELBO of `steps` steps; True when nothing more is to be gained."""
        weight = min(1.0, steps / SMOOTHING_STEPS)
        self._smoothed = value if self._best == -float("inf") else (1 - weight) * self._smoothed + weight * value
        self._steps_since_best += steps
        # a tenth of the tolerance: the steps are small and many
        if self._smoothed > self._best + 0.1 * self._tol * max(self._smoothed - rank0, 0.0):
            self._best, self._steps_since_best = self._smoothed, 0
        if self._steps_since_best < PATIENCE_STEPS:
            return False
        self._steps_since_best = 0
        self._halved += 1
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] /= 2
        return self._halved >= HALVINGS
