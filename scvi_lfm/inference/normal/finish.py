"""From the last step to a result: one exact step, drop what is off, q of every cell, the stored gauge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...linalg.covariances import Eigenbasis
from ...model import Gaussian
from ...model.noise import NormalNoise
from ...model.priors import kl_of_mu, with_known
from ...posterior import NormalPosterior, to_stored_gauge
from ..noise import noise_floor
from ..passes import average_with
from .elbo import elbo, kl_genes
from .natural_gradient import expected_squares
from .sweep import keep_factors, local_step, sweep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from ...data import Batch
    from ...data.blocks import Blocks
    from ...linalg.covariances import OneBasis
    from ..minibatches import Minibatches
    from ..options import FitResult
    from ..state import Problem
    from ..trace import Trace
    from .natural_gradient import CellBlock
    from .state import NormalGlobals, NormalStatistics
    from .sweep import Step

# a factor whose sum of E[B^2], or what its means explain, is below this share of the largest is off
OFF = 1e-6
# so is one that explains less than this share of sigma^2 in a cell: the least that can be told from noise is about 1
TOO_LITTLE = 1e-3


def drop_unused_factors(problem: Problem, step: Step) -> Step:
    """Remove factors that are off, and solve once more for the genes so that T_j belongs to the final noise."""
    g, p = step.globals, step.globals.n_known
    norms = g.second_moment().diagonal()[2 + p :]
    explained = step.statistics.xx.diagonal()[2 + p :] * g.gene_mean[:, 1 + p :].square().sum(0)
    return keep_factors(problem, step, used_factors(norms, explained, g.precision))


def used_factors(norms: Tensor, explained: Tensor, precision: Tensor) -> Tensor:
    """Positions of the factors that are on, from sums of E[B^2] and what their means explain in a cell, (r,) each."""
    if not len(norms):
        return torch.arange(0, device=norms.device)
    least = torch.maximum(OFF * explained.amax(), TOO_LITTLE / precision.mean())
    return torch.nonzero((norms > OFF * norms.amax()) & (explained > least)).flatten()


def finish(problem: Problem, step: Step, batches: Minibatches, trace: Trace) -> FitResult:
    """One exact step from all cells, then their q and the ELBO given the genes."""
    if batches.count > 1:
        step = sweep(problem, step.globals, batches.everyone)
    step = drop_unused_factors(problem, step)
    summary = _summarise_optimum(problem, step, batches.everyone)
    # genes as they will be stored: projecting the cells later gives the same but for the rounding of float32
    return to_result(replace(summary, posterior=summary.posterior.rounded(batches.matrix.level)), trace)


@dataclass(frozen=True)
class PosteriorSummary:
    """A posterior in the stored gauge, with what a pass over all cells says about it."""

    posterior: NormalPosterior
    elbo: float  # per entry
    total_variance: float  # of the data around gene means, per cell


def _summarise_optimum(problem: Problem, step: Step, cells: Blocks) -> PosteriorSummary:
    """q of every cell at its optimum given the genes, whose `statistics` are from all cells: no more sums over cells.

    The noise for predicting is that of the step, in which genes had their optimum given the cells.
    """
    g, statistics = step.globals, step.statistics
    cell_step = local_step(problem, g, g.precision @ statistics.yy)
    weighs = problem.noise == "cell_gene"  # the averages have no margins then
    mean = g.gene_mean.new_empty(problem.n_cells, g.gene_mean.shape[1])
    parts = cells.split(mean)
    elbos, covs, margins = [], [], mean.new_zeros(2, problem.n_genes)
    visits = cells.each(lambda batch: (cell_step(batch), _margins(batch) if weighs else None))
    for rows, (block, of_block) in zip(parts, visits, strict=True):
        rows.copy_(block.mean)
        elbos.append(block.local_elbo)
        covs.append(block.covs)
        if of_block is not None:
            margins += of_block
    shares = torch.tensor([len(rows) for rows in parts], dtype=torch.float64, device=mean.device)
    local = torch.stack(elbos) @ shares / problem.n_cells
    value = problem.n_cells * local - kl_of_mu(g.mu, g.mu_var) - kl_genes(g)
    first, second = margins / problem.n_cells if weighs else (statistics.yx[:, 0], statistics.yy)
    total = float(second.sum() - first.square().sum())
    posterior = _to_posterior(g, mean, covs[0].joined(covs[1:]), statistics, problem.noise)
    return PosteriorSummary(posterior, float(value) / problem.n_entries, total)


def _margins(batch: Batch) -> Tensor:
    """Sums of the values and of their squares, (2, m)."""
    ones = torch.ones(batch.n_cells, 1, dtype=torch.float64, device=batch.device)
    return torch.stack([batch.times_cells(ones)[:, 0], batch.square_sums])


def summarise(problem: Problem, g: NormalGlobals, blocks: Iterable[tuple[Batch, CellBlock]]) -> PosteriorSummary:
    """Exact statistics over all cells, given q of each block in order, be it the optimum or not."""
    parts = ((batch.n_cells, block.statistics(batch), (block.mean, block.covs)) for batch, block in blocks)
    statistics, more = average_with(parts, problem.n_cells)
    means, covs = zip(*more, strict=True)
    value = float(elbo(g, statistics, covs[0].log_mean(), problem.n_cells)) / problem.n_entries
    total = float(statistics.yy.sum() - statistics.yx[:, 0].square().sum())
    cov = covs[0].joined(covs[1:])
    return PosteriorSummary(_to_posterior(g, torch.cat(means), cov, statistics, problem.noise), value, total)


def to_result(summary: PosteriorSummary, trace: Trace) -> FitResult:
    """The result of a fit; its last ELBO is the exact one."""
    explained = summary.posterior.cell_factors.square().mean(0) / max(summary.total_variance, 1e-300)
    return trace.result(summary.posterior, summary.elbo, explained.tolist())


def _to_posterior(
    g: NormalGlobals, cell_mean: Tensor, cov: OneBasis, statistics: NormalStatistics, noise: str
) -> NormalPosterior:
    # the geometric mean of sigma_i is one: its level is the genes'
    cov, of_cells, level = cov.without_level()
    sigma = (g.precision / level**2).rsqrt()
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
