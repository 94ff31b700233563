"""From the last step to a result: drop what is off, visit every cell once more, move to the stored gauge."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...linalg.covariances import Common, Eigenbasis
from ...model import Gaussian
from ...model.noise import NormalNoise
from ...model.priors import with_known
from ...posterior import NormalPosterior, to_stored_gauge
from ..noise import noise_floor
from .elbo import elbo
from .natural_gradient import expected_squares, normalise_weights
from .projection import project_cells
from .sweep import LocalStep, keep_factors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from ...data import Batch
    from ..minibatches import Minibatches
    from ..options import FitResult
    from ..state import Problem
    from ..trace import Trace
    from .state import NormalGlobals, NormalStatistics
    from .sweep import CellBlock, Step

# a factor whose sum of E[B^2], or what its means explain, is below this share of the largest is off
OFF = 1e-6
# so is one that explains less than this share of sigma^2 in a cell: the least that can be told from noise is about 1
TOO_LITTLE = 1e-3


def drop_unused_factors(problem: Problem, step: Step) -> Step:
    """Remove factors that are off, and solve once more for the genes so that T_j belongs to the final noise."""
    g = step.globals
    if g.n_factors == 0:
        return keep_factors(problem, step, torch.arange(0, device=g.mu.device))
    p = g.n_known
    norms = g.weighted_moment(torch.ones_like(g.precision)).diagonal()[2 + p :]
    explained = step.statistics.xx.diagonal()[2 + p :] * g.gene_mean[:, 1 + p :].square().sum(0)
    least = torch.maximum(OFF * explained.amax(), TOO_LITTLE / g.precision.mean())
    on = (norms > OFF * norms.amax()) & (explained > least)
    return keep_factors(problem, step, torch.nonzero(on).flatten())


def finish(problem: Problem, step: Step, batches: Minibatches, trace: Trace) -> FitResult:
    """The last passes: exact statistics, ELBO and predictive noise, then q of every cell given the stored genes."""
    local_step = LocalStep(problem, step.globals)
    summary = summarise(problem, step.globals, ((batch, local_step(batch)) for batch in batches.in_order()))
    # the cells once more, from the genes as they will be stored: projecting them later gives the same bits
    posterior = project_cells(batches.matrix, summary.posterior.rounded(batches.matrix.level))
    return to_result(replace(summary, posterior=posterior), trace)


@dataclass(frozen=True)
class Summary:
    """A posterior in the stored gauge, with what a pass over all cells says about it."""

    posterior: NormalPosterior
    elbo: float  # per entry
    total_variance: float  # of the data around gene means, per cell


def summarise(problem: Problem, g: NormalGlobals, blocks: Iterable[tuple[Batch, CellBlock]]) -> Summary:
    """Exact statistics over all cells, given q of each block in order."""
    means: list[Tensor] = []
    differing: list[Eigenbasis] = []
    margins: list[Tensor] = []  # mean y and mean y^2 of each gene

    def shares() -> Iterator[tuple[NormalStatistics, Tensor]]:
        for batch, block in blocks:
            means.append(block.mean)
            share = batch.n_cells / problem.n_cells
            if block.noisy is not None:
                differing.append(block.noisy.cov)
                sums = batch.times_cells(torch.ones_like(block.mean[:, :1]))[:, 0]
                margins.append(torch.stack([sums, batch.square_sums]) / problem.n_cells)
            yield block.statistics(batch).scaled(share), block.cov

    statistics, cov = functools.reduce(lambda left, right: (left[0].plus(right[0]), right[1]), shares())
    covs: Common | Eigenbasis = Common(cov, problem.n_cells)
    first, second = statistics.yx[:, 0], statistics.yy
    if differing:
        covs = differing[0].under(torch.cat([part.sigma for part in differing]))
        cov = covs.log_mean()
        first, second = torch.stack(margins).sum(0)
    value = float(elbo(g, statistics, cov, problem.n_cells)) / (problem.n_cells * problem.n_genes)
    total = float(second.sum() - first.square().sum())
    return Summary(_to_posterior(g, torch.cat(means), covs, statistics, problem.noise), value, total)


def to_result(summary: Summary, trace: Trace) -> FitResult:
    """The result of a fit; its last ELBO is the exact one."""
    explained = summary.posterior.cell_factors.square().mean(0) / max(summary.total_variance, 1e-300)
    return trace.result(summary.posterior, summary.elbo, explained.tolist())


def _to_posterior(
    g: NormalGlobals, cell_mean: Tensor, cov: Common | Eigenbasis, statistics: NormalStatistics, noise: str
) -> NormalPosterior:
    of_cells: Tensor | None = None
    if isinstance(cov, Eigenbasis):
        g, _ = normalise_weights(g, statistics)
        of_cells = cov.sigma / cov.sigma.log().mean().exp()
        cov = replace(cov, sigma=of_cells, eig=cov.eig / cov.sigma.log().mean().mul(2).exp())
    sigma = g.precision.rsqrt()
    predictive = sigma
    if noise == "shared":
        squares = expected_squares(g, statistics)
        predictive = squares.clamp_min(noise_floor(statistics.mean_square)).sqrt()
    return to_stored_gauge(
        NormalPosterior(
            mu=float(g.mu),
            cell_mean=cell_mean,
            cell_cov=cov,
            gene_mean=g.gene_mean,
            gene_cov=Eigenbasis(g.gene_basis, g.gene_eig, predictive),
            noise=NormalNoise(sigma, predictive, of_cells),
            cell_prior=population(torch.diag(g.scales.cell_var), statistics.xx, g.n_known),
            gene_prior=g.gene_prior,
            n_known=g.n_known,
        )
    )


def population(prior_cov: Tensor, cell_moment: Tensor, n_known: int) -> Gaussian:
    """The prior of (a, A) with the cells' covariates, whose moments are in mean x x' with x = (1, a, zeta, A)."""
    cov = with_known(prior_cov, n_known)
    mean = torch.zeros_like(cov[0])
    known = slice(2, 2 + n_known)
    mean[1 : 1 + n_known] = cell_moment[0, known]
    cov[1 : 1 + n_known, 1 : 1 + n_known] = cell_moment[known, known] - torch.outer(*[cell_moment[0, known]] * 2)
    return Gaussian(mean, cov)
