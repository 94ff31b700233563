"""One step of inference on one block of cells: cells, then genes, mu, noise, scales and gauge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...model.priors import with_known
from ...posterior.posterior import extend
from ..moves import improve_gauge
from ..state import factor_columns
from .cell_noise import NoisyCellStep, cell_basis, weighted_statistics
from .natural_gradient import (
    cell_covariance,
    cell_information,
    cell_means,
    cell_precision,
    cell_statistics,
    local_elbo,
    normalise_weights,
    update_genes,
    update_mu,
    update_noise,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import Batch
    from ..state import Problem
    from .cell_noise import NoisyCells
    from .state import NormalGlobals, NormalStatistics


@dataclass(frozen=True)
class CellBlock:
    """q(a, A) for the cells of a batch, optimal given the genes; covariates stand between a and A, without variance."""

    mean: Tensor  # (batch, 1+p+r)
    cov: Tensor  # (1+p+r, 1+p+r): S, or a matrix with the mean of log |S_i|
    local_elbo: Tensor  # (): mean over the batch
    noisy: NoisyCells | None = None  # where noise differs by cell

    def statistics(self, batch: Batch) -> NormalStatistics:
        """Averages over the cells."""
        if self.noisy is not None:
            return weighted_statistics(batch, self.noisy)
        return cell_statistics(batch, self.mean, self.cov)


@dataclass(frozen=True)
class Step:
    """State after one step, all in one gauge; `local_elbo` was measured before the genes moved."""

    globals: NormalGlobals
    statistics: NormalStatistics
    cell_cov: Tensor
    local_elbo: Tensor


class LocalStep:
    """The local step: exact, one product with the data and one small solve for all cells.

    What depends on the genes alone is computed once and serves every batch until they change.
    """

    def __init__(self, problem: Problem, g: NormalGlobals) -> None:
        p = g.n_known
        self._g, self._prior = g, g.cell_prior
        self._noisy: NoisyCellStep | None = None
        if problem.noise == "cell_gene":
            moment = g.weighted_moment(g.precision)
            basis = cell_basis(cell_information(moment, len(self._prior.mean)), self._prior, problem.family)
            self._noisy = NoisyCellStep(g.mu, g.mu_var, g.gene_mean, g.precision, moment, self._prior, basis)
            return
        columns = torch.cat([extend(g.gene_mean), g.gene_mean[:, :1]], dim=1)
        self._weighted = g.precision[:, None] * columns  # w_j (1, beta_j, B_j, b_j)
        self._ends = [0, -1, *range(1, 1 + p)]  # (1, b_j, beta_j) of them
        self._moment = g.weighted_moment(g.precision)
        self._precision = cell_precision(self._moment, self._prior)
        self._cov = cell_covariance(self._precision, problem.family)

    def __call__(self, batch: Batch) -> CellBlock:
        """q(a, A) of the cells of a batch."""
        if self._noisy is not None:
            noisy = self._noisy(batch)
            return CellBlock(noisy.mean, noisy.cov.log_mean(), noisy.local_elbo(self._g.precision), noisy)
        projected = batch.times_genes(self._weighted)
        known = batch.known
        mean = cell_means(self._g.mu, projected[:, :-1], self._moment, self._precision, self._prior, known)
        square = self._g.precision @ batch.square_sums / batch.n_cells
        ends = projected[:, self._ends]
        local = local_elbo(self._g, mean, ends, square, self._moment, self._precision, self._cov, known)
        return CellBlock(insert_known(mean, known), with_known(self._cov, known.shape[1]), local)


def insert_known(mean: Tensor, known: Tensor) -> Tensor:
    """Rows (a, zeta, A) from (a, A)."""
    return torch.cat([mean[:, :1], known, mean[:, 1:]], dim=1)


def gene_step(
    problem: Problem, g: NormalGlobals, statistics: NormalStatistics, cell_cov: Tensor
) -> tuple[NormalGlobals, NormalStatistics, Tensor]:
    """The global step, given the statistics of the cells; then the gauge of highest ELBO."""
    g, statistics = normalise_weights(g, statistics)
    g = update_genes(g, statistics, problem.n_cells, problem.family)
    g = update_mu(g, statistics, problem.n_cells)
    g = update_noise(g, statistics, problem.noise)
    g = g.with_scales_learned(statistics.xx[1, 1])
    rotates = problem.rotates and g.n_factors > 0
    return improve_gauge(g, statistics, cell_cov, problem.n_cells, rotates=rotates)


def sweep(
    problem: Problem, g: NormalGlobals, batch: Batch, running: NormalStatistics | None = None, rate: float = 1.0
) -> Step:
    """One step, with `rate` on the running averages; rate 1 on all cells is coordinate ascent."""
    block = LocalStep(problem, g)(batch)
    new = block.statistics(batch)
    statistics = new if running is None else running.blend(new, rate)
    g, statistics, cov = gene_step(problem, g, statistics, block.cov)
    return Step(g, statistics, cov, block.local_elbo)


def keep_factors(problem: Problem, step: Step, kept: Tensor) -> Step:
    """The step with the factors at positions `kept` alone, and the genes solved for anew."""
    g, statistics = step.globals, step.statistics
    rows, columns = factor_columns(1 + g.n_known, kept), factor_columns(2 + g.n_known, kept)
    scales = replace(g.scales, A=g.scales.A[kept], B=g.scales.B[kept])
    g = replace(g, gene_mean=g.gene_mean[:, rows], scales=scales)
    statistics = statistics.at_factors(columns)
    g = update_genes(g, statistics, problem.n_cells, problem.family)
    return Step(g, statistics, step.cell_cov[rows][:, rows], step.local_elbo)
