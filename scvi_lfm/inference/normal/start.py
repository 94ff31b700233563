"""Starting points, from some cells: the model without factors, then with random ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...data.blocks import Blocks
from ...model.priors import initial_scales
from ..passes import average, pooled
from ..state import Problem
from .natural_gradient import cell_statistics
from .state import NormalGlobals
from .sweep import gene_step, keep_factors, local_step, sweep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from ...data import Batch, CellMatrix
    from .sweep import Step

RANK0_SWEEPS = 5
FACTOR_SWEEPS = 5
# relevance determination waits until the factors point somewhere: it would switch off weak ones that do not yet
WIDE_SWEEPS = 2
# factors beyond those asked for let the leading ones settle in fewer sweeps, and are then dropped
OVERSAMPLING = 10


def fit_without_factors(problem: Problem, cells: Blocks, prior_scales: Mapping[str, object]) -> Step:
    """Coordinate ascent on mu + a_i + b_j alone, and zeta_i . beta_j where there are covariates."""
    mean, spread = location_and_spread(cells.each(sums))
    sigma = torch.as_tensor(prior_scales.get("sigma", spread), dtype=spread.dtype, device=spread.device)
    p = cells.known.shape[1]
    ones = torch.ones(1 + p, dtype=torch.float64, device=cells.device)
    g = NormalGlobals(
        mu=mean,
        mu_var=ones[0],
        gene_mean=torch.zeros(problem.n_genes, 1 + p, dtype=torch.float64, device=cells.device),
        gene_basis=torch.diag(spread * ones),
        gene_eig=ones,
        gene_diagonal=ones.expand(problem.n_genes, 1 + p),
        precision=sigma.square().reciprocal().expand(problem.n_genes),
        scales=initial_scales(0, prior_scales, spread, p),
    )
    for _ in range(RANK0_SWEEPS):
        step = sweep(problem, g, cells)
        g = step.globals
    return step


def sums(batch: Batch) -> Tensor:
    """Sum, sum of squares and number of the observed values of a block, (3,) in float64."""
    ones = torch.ones(batch.n_cells, 1, dtype=torch.float64, device=batch.device)
    count = batch.observed_times_cells(ones).sum(dtype=torch.float64)
    return torch.stack([batch.times_cells(ones).sum(), batch.square_sums.sum(), count])


def location_and_spread(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, in float64, from the :func:`sums` of some blocks."""
    total, square, count = torch.stack(list(parts)).sum(0)
    mean = total / count
    return mean, (square / count - mean.square()).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def add_random_factors(
    problem: Problem,
    g: NormalGlobals,
    cells: Blocks,
    n_factors: int,
    prior_scales: Mapping[str, object],
    generator: torch.Generator,
) -> Step:
    """Give some cells random factors and let a few sweeps turn them into the leading ones."""
    device = cells.device
    n_drawn = min(n_factors + OVERSAMPLING, cells.n_cells, problem.n_genes) if problem.rotates else n_factors
    g = g.with_more_factors(n_drawn, prior_scales, location_and_spread(cells.each(sums))[1])
    scales = g.scales
    factors = torch.randn(cells.n_cells, n_drawn, generator=generator, dtype=torch.float64, device=generator.device).to(
        device
    )
    first = torch.cat([torch.zeros_like(factors[:, :1]), cells.known], dim=1)  # (a, zeta)
    width = first.shape[1] + n_drawn
    cov = torch.zeros(width, width, dtype=torch.float64, device=device)
    cov[0, 0] = scales.a.square()
    eye = torch.eye(width, dtype=torch.float64, device=device)
    g = replace(
        g,
        gene_basis=eye,
        gene_eig=eye.diagonal(),
        gene_diagonal=torch.ones(problem.n_genes, width, dtype=torch.float64, device=device),
    )
    mean = torch.cat([first, factors * scales.A], dim=1)
    drawn = cells.each(
        lambda batch, rows: (batch.n_cells, cell_statistics(batch, rows, cov)), cells.split(mean), pool=pooled
    )
    g, _, _ = gene_step(problem, g, average(drawn, cells.n_cells), cov + 1e-6 * eye)
    for number in range(FACTOR_SWEEPS):
        step = sweep(problem, g, cells)
        g = step.globals
        if problem.rotates and number < WIDE_SWEEPS:
            g = replace(g, scales=replace(g.scales, B=scales.B))
    return step if n_drawn == n_factors else keep_factors(problem, step, torch.arange(n_factors, device=device))


def first_factors(logged: CellMatrix, n_factors: int, device: torch.device, seed: int) -> Tensor:
    """A of some cells, (cells, r), from a few sweeps of the Normal model; mean E[A A'] = I."""
    problem = Problem(*logged.shape, "row_block", "shared")
    cells = Blocks.of_cells(logged, None, device, last=True)
    step = fit_without_factors(problem, cells, {})
    generator = torch.Generator().manual_seed(seed)
    step = add_random_factors(problem, step.globals, cells, n_factors, {}, generator)
    cell_step = local_step(problem, step.globals)
    return torch.cat(list(cells.each(lambda batch: cell_step(batch).mean)))[:, 1 + cells.known.shape[1] :].float()
