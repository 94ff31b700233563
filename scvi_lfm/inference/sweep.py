"""One step of inference on one block of cells: cells, then genes, mu, noise, scales and gauge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model import Gaussian
from ..posterior.posterior import extend
from .moves import improve_gauge
from .natural_gradient import (
    cell_covariance,
    cell_means,
    cell_precision,
    cell_statistics,
    local_elbo,
    update_genes,
    update_mu,
    update_noise,
    update_scales,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Batch
    from .state import CellStatistics, Globals


@dataclass(frozen=True)
class Problem:
    """What stays the same during a fit."""

    n_cells: int
    n_genes: int
    family: str
    noise: str
    rotates: bool = True


@dataclass(frozen=True)
class CellBlock:
    """q(a, A) for the cells of a batch, optimal given the genes."""

    mean: Tensor  # (batch, r+1)
    cov: Tensor  # (r+1, r+1)
    local_elbo: Tensor  # (): mean over the batch


@dataclass(frozen=True)
class Step:
    """State after one step, all in one gauge; `local_elbo` was measured before the genes moved."""

    globals: Globals
    statistics: CellStatistics
    cell_cov: Tensor
    local_elbo: Tensor


def cell_step(problem: Problem, g: Globals, batch: Batch) -> CellBlock:
    """The local step: exact, one product with the data and one small solve for all cells."""
    prior_var = g.scales.cell_var
    prior = Gaussian(torch.zeros_like(prior_var), torch.diag(prior_var))
    columns = torch.cat([extend(g.gene_mean), g.gene_mean[:, :1]], dim=1)
    projected = batch.times_genes(g.precision[:, None] * columns).double()
    moment = g.weighted_moment(g.precision)
    precision = cell_precision(moment, prior)
    cov = cell_covariance(precision, problem.family)
    mean = cell_means(g.mu, projected[:, :-1], moment, precision, prior)
    square = g.precision @ batch.square_sums / batch.n_cells
    return CellBlock(mean, cov, local_elbo(g, mean, projected[:, [0, -1]], square, moment, precision, cov))


def gene_step(
    problem: Problem, g: Globals, statistics: CellStatistics, cell_cov: Tensor
) -> tuple[Globals, CellStatistics, Tensor]:
    """The global step, given the statistics of the cells; then the gauge of highest ELBO."""
    g = update_genes(g, statistics, problem.n_cells, problem.family)
    g = update_mu(g, statistics, problem.n_cells)
    g = update_noise(g, statistics, problem.noise)
    g = update_scales(g, statistics)
    rotates = problem.rotates and g.n_factors > 0
    return improve_gauge(g, statistics, cell_cov, problem.n_cells, rotates=rotates)


def sweep(problem: Problem, g: Globals, batch: Batch, running: CellStatistics | None = None, rate: float = 1.0) -> Step:
    """One step, with `rate` on the running averages; rate 1 on all cells is coordinate ascent."""
    block = cell_step(problem, g, batch)
    new = cell_statistics(batch, block.mean, block.cov)
    statistics = new if running is None else running.blend(new, rate)
    g, statistics, cov = gene_step(problem, g, statistics, block.cov)
    return Step(g, statistics, cov, block.local_elbo)
