"""One step of inference on some cells, block by block: cells, then genes, mu, noise, scales and gauge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...data import Scaled
from ...linalg.covariances import Common
from ...model.priors import with_known
from ..moves import improve_gauge
from ..passes import average_with
from ..state import factor_columns
from .cell_noise import NoisyCellStep
from .natural_gradient import (
    CellBlock,
    cell_covariance,
    cell_means,
    cell_precision,
    update_genes,
    update_mu,
    update_noise,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ...linalg.covariances import OneBasis
    from ..state import Problem
    from .state import NormalGlobals, NormalStatistics


@dataclass(frozen=True)
class Step:
    """State after one step, all in one gauge; `local_elbo` was measured before the genes moved."""

    globals: NormalGlobals
    statistics: NormalStatistics
    cell_cov: Tensor
    local_elbo: Tensor


def local_step(problem: Problem, g: NormalGlobals, square: Tensor | None = None) -> Callable[[Batch], CellBlock]:
    """The local step given the genes, for every batch until they change.

    `square` is the mean over cells of sum_j w_j y_ij^2, where it is known of all of them.
    """
    moment = g.weighted_moment()
    if problem.noise == "cell_gene":
        return NoisyCellStep.of(g, moment, problem.family)
    return LocalStep(g, moment, problem.family, square)


class LocalStep:
    """The local step under noise that all cells share: exact, one product with the data and one small solve for all.

    What depends on the genes alone is computed once and serves every batch until they change.
    """

    def __init__(self, g: NormalGlobals, moment: Tensor, family: str, square: Tensor | None) -> None:
        self._g, self._prior, self._moment, self._square = g, g.cell_prior, moment, square
        columns = torch.cat([g.precision[:, None], g.gene_mean[:, 1:], g.gene_mean[:, :1]], dim=1)
        columns[:, 1:] *= g.precision[:, None]
        self._weighted = Scaled(columns)  # w_j (1, beta_j, B_j, b_j)
        self._precision = cell_precision(moment, self._prior)
        self._cov = cell_covariance(self._precision, family)

    def __call__(self, batch: Batch) -> CellBlock:
        """q(a, A) of the cells of a batch."""
        projected, known = batch.times_genes(self._weighted), batch.known
        mean = cell_means(self._g.mu, projected[:, :-1], self._moment, self._precision, self._prior, known)
        covs = Common(with_known(self._cov, known.shape[1]), batch.n_cells)
        return CellBlock(insert_known(mean, known), covs, self._local_elbo(mean, projected, batch))

    def _local_elbo(self, mean: Tensor, projected: Tensor, batch: Batch) -> Tensor:
        """Mean over cells of the ELBO terms that belong to a cell, whose q is the optimum given the genes."""
        g, moment, known = self._g, self._moment, batch.known
        square = g.precision @ batch.square_sums / batch.n_cells if self._square is None else self._square
        intercept = moment[0, 0] * (g.mu.square() + g.mu_var) + 2 * g.mu * moment[0, 1] + moment[1, 1]
        linear = g.mu * projected[:, 0].mean() + projected[:, -1].mean()
        if p := known.shape[1]:
            of_beta, average = slice(2, 2 + p), known.mean(0)
            intercept = intercept + 2 * average @ (g.mu * moment[0, of_beta] + moment[1, of_beta])
            intercept = intercept + (moment[of_beta, of_beta] * (known.T @ known / len(known))).sum()
            linear = linear + (projected[:, 1 : 1 + p] * known).sum(1).mean()
        explained = ((mean @ self._precision) * mean).sum(1).mean()
        noise = g.precision.log().sum() - len(g.precision) * math.log(2 * math.pi)
        entropy = torch.logdet(self._cov) - g.scales.cell_var.log().sum()
        return 0.5 * (noise - square - intercept + explained + entropy) + linear


def insert_known(mean: Tensor, known: Tensor) -> Tensor:
    """Rows (a, zeta, A) from (a, A)."""
    return torch.cat([mean[:, :1], known, mean[:, 1:]], dim=1)


def gene_step(
    problem: Problem, g: NormalGlobals, statistics: NormalStatistics, cell_cov: Tensor
) -> tuple[NormalGlobals, NormalStatistics, Tensor]:
    """The global step, given the statistics of the cells; then the gauge of highest ELBO."""
    g, statistics = statistics.normalised(g)
    g = update_genes(g, statistics, problem.n_cells, problem.family)
    g = update_mu(g, statistics, problem.n_cells)
    g = update_noise(g, statistics, problem.noise)
    g = g.with_scales_learned(statistics.xx[1, 1])
    return improve_gauge(g, statistics, cell_cov, problem.n_cells, rotates=problem.rotates)


@dataclass(frozen=True)
class Visited:
    """Averages, covariances and ELBO of some cells under the same genes."""

    n_cells: int
    statistics: NormalStatistics
    covs: OneBasis  # S_i
    local_elbo: Tensor  # (): mean over the cells


def visit(step: Callable[[Batch], CellBlock], cells: Blocks) -> Visited:
    """Averages over all cells, each visited once."""
    return _together(cells.each(partial(_visit_block, step), pool=_together), cells.n_cells)


def _visit_block(step: Callable[[Batch], CellBlock], batch: Batch) -> Visited:
    block = step(batch)
    return Visited(batch.n_cells, block.statistics(batch), block.covs, block.local_elbo)


def _together(blocks: Iterable[Visited], n_cells: int) -> Visited:
    """Averages over the cells of some blocks, `n_cells` in all."""
    parts = (
        (block.n_cells, block.statistics, (block.covs, block.local_elbo * (block.n_cells / n_cells)))
        for block in blocks
    )
    statistics, more = average_with(parts, n_cells)
    covs, elbo = zip(*more, strict=True)
    return Visited(n_cells, statistics, covs[0].joined(covs[1:]), torch.stack(elbo).sum())


def mean_local_elbo(step: Callable[[Batch], CellBlock], cells: Blocks) -> Tensor:
    """Mean over the cells of the ELBO terms that belong to one, ()."""
    n = cells.n_cells
    parts = cells.each(lambda batch: step(batch).local_elbo * (batch.n_cells / n))
    return torch.stack(list(parts)).sum()


def sweep(
    problem: Problem, g: NormalGlobals, cells: Blocks, running: NormalStatistics | None = None, rate: float = 1.0
) -> Step:
    """Step with `rate` on the running averages; rate 1 on all cells is coordinate ascent."""
    visited = visit(local_step(problem, g), cells)
    statistics = visited.statistics if running is None else running.blend(visited.statistics, rate)
    g, statistics, cov = gene_step(problem, g, statistics, visited.covs.log_mean())
    return Step(g, statistics, cov, visited.local_elbo)


def keep_factors(problem: Problem, step: Step, kept: Tensor) -> Step:
    """The step with the factors at positions `kept` alone, and the genes solved for anew."""
    g, statistics = step.globals, step.statistics
    rows, columns = factor_columns(1 + g.n_known, kept), factor_columns(2 + g.n_known, kept)
    statistics = statistics.at_columns(columns)
    g = update_genes(g.at_factors(kept), statistics, problem.n_cells, problem.family)
    return Step(g, statistics, step.cell_cov[rows][:, rows], step.local_elbo)
