"""One step of inference on some cells, block by block: cells, then genes, mu, noise, scales and gauge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...data import Scaled
from ...model.priors import with_known
from ..moves import improve_gauge
from ..passes import average
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
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ...linalg.covariances import Eigenbasis
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
        self._g, self._prior = g, g.cell_prior
        self._noisy: NoisyCellStep | None = None
        if problem.noise == "cell_gene":
            moment = g.weighted_moment(g.precision)
            basis = cell_basis(cell_information(moment, len(self._prior.mean)), self._prior, problem.family)
            self._noisy = NoisyCellStep(g.mu, g.mu_var, g.gene_mean, g.precision, moment, self._prior, basis)
            return
        columns = torch.cat([g.precision[:, None], g.gene_mean[:, 1:], g.gene_mean[:, :1]], dim=1)
        columns[:, 1:] *= g.precision[:, None]
        self._weighted = Scaled(columns)  # w_j (1, beta_j, B_j, b_j)
        self._moment = g.weighted_moment(g.precision)
        self._precision = cell_precision(self._moment, self._prior)
        self._cov = cell_covariance(self._precision, problem.family)

    def __call__(self, batch: Batch, square: Tensor | None = None) -> CellBlock:
        """q(a, A) of the cells of a batch; `square` is the mean over cells of sum_j w_j y_ij^2, where it is known."""
        if self._noisy is not None:
            noisy = self._noisy(batch)
            return CellBlock(noisy.mean, noisy.cov.log_mean(), noisy.local_elbo(self._g.precision), noisy)
        projected = batch.times_genes(self._weighted)
        known = batch.known
        mean = cell_means(self._g.mu, projected[:, :-1], self._moment, self._precision, self._prior, known)
        square = self._g.precision @ batch.square_sums / batch.n_cells if square is None else square
        p = known.shape[1]
        ends = torch.cat([projected[:, :1], projected[:, -1:], projected[:, 1 : 1 + p]], dim=1)  # of (1, b_j, beta_j)
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


@dataclass(frozen=True)
class Visited:
    """What some cells say under the same genes."""

    n_cells: int
    statistics: NormalStatistics
    cov: Tensor  # S, or a matrix with the mean of log |S_i|
    local_elbo: Tensor  # (): mean over the cells
    noisy: Eigenbasis | None = None  # S_i where noise differs by cell


def visit(local_step: LocalStep, cells: Blocks) -> Visited:
    """Every cell once, and averages over them."""
    return _together(cells.each(partial(_visit_block, local_step), pool=_together), cells.n_cells)


def _visit_block(local_step: LocalStep, batch: Batch) -> Visited:
    block = local_step(batch)
    noisy = None if block.noisy is None else block.noisy.cov
    return Visited(batch.n_cells, block.statistics(batch), block.cov, block.local_elbo, noisy)


def _together(blocks: Iterable[Visited], n_cells: int) -> Visited:
    """What blocks say that have so many cells."""
    elbo: list[Tensor] = []
    covs: list[Tensor] = []
    noisy: list[Eigenbasis] = []

    def averages() -> Iterator[tuple[int, NormalStatistics]]:
        for block in blocks:
            elbo.append(block.local_elbo * (block.n_cells / n_cells))
            covs.append(block.cov)
            if block.noisy is not None:
                noisy.append(block.noisy)
            yield block.n_cells, block.statistics

    statistics = average(averages(), n_cells)
    of_all = joined(noisy) if noisy else None
    cov = covs[0] if of_all is None else of_all.log_mean()
    return Visited(n_cells, statistics, cov, torch.stack(elbo).sum(), of_all)


def joined(covs: list[Eigenbasis]) -> Eigenbasis:
    """The covariances of all blocks, which have one basis."""
    return covs[0].under(torch.cat([cov.sigma for cov in covs]))


def mean_local_elbo(local_step: LocalStep, cells: Blocks) -> Tensor:
    """Mean over the cells of the ELBO terms that belong to one, ()."""
    n = cells.n_cells
    parts = cells.each(lambda batch: local_step(batch).local_elbo * (batch.n_cells / n))
    return torch.stack(list(parts)).sum()


def sweep(
    problem: Problem, g: NormalGlobals, cells: Blocks, running: NormalStatistics | None = None, rate: float = 1.0
) -> Step:
    """One step, with `rate` on the running averages; rate 1 on all cells is coordinate ascent."""
    visited = visit(LocalStep(problem, g), cells)
    statistics = visited.statistics if running is None else running.blend(visited.statistics, rate)
    g, statistics, cov = gene_step(problem, g, statistics, visited.cov)
    return Step(g, statistics, cov, visited.local_elbo)


def keep_factors(problem: Problem, step: Step, kept: Tensor) -> Step:
    """The step with the factors at positions `kept` alone, and the genes solved for anew."""
    g, statistics = step.globals, step.statistics
    rows, columns = factor_columns(1 + g.n_known, kept), factor_columns(2 + g.n_known, kept)
    scales = replace(g.scales, A=g.scales.A[kept], B=g.scales.B[kept])
    g = replace(g, gene_mean=g.gene_mean[:, rows], scales=scales)
    statistics = statistics.at_factors(columns)
    g = update_genes(g, statistics, problem.n_cells, problem.family)
    return Step(g, statistics, step.cell_cov[rows][:, rows], step.local_elbo)
