"""From the last step to a result: an exact step of all cells and genes, the stored gauge, and the cells once more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from ...linalg.covariances import Packed, PackedUnderNoise
from ...model.noise import NormalNoise
from ...posterior import NormalPosterior, to_stored_gauge
from .noise import shrunk_variances
from .projection import project_observed
from .start import statistics_of
from .state import Rows
from .steps import CellStep, elbo, update_genes, update_genes_and_mu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ...data import Batch, CellMatrix
    from ...data.blocks import Blocks
    from ..options import FitResult
    from ..state import Problem
    from ..trace import Trace
    from .state import ObservedGlobals, ObservedStatistics


def finish(
    problem: Problem, g: ObservedGlobals, blocks: Blocks, matrix: CellMatrix, centre: float, trace: Trace
) -> FitResult:
    """The result: exact statistics and ELBO, noise for predicting, q of every cell given the genes as stored."""
    statistics, cells = statistics_of(CellStep.of(g, problem.family), blocks)
    g, squares = update_genes_and_mu(problem, g, statistics)
    value = float(elbo(problem, g, statistics, squares)) / problem.n_entries
    posterior = _to_posterior(problem, g, cells, statistics, squares)
    # the cells once more, from the genes as they will be stored: projecting them later gives the same bits
    posterior = replace(posterior, mu=posterior.mu + centre).rounded(matrix.level)
    posterior = project_observed(matrix, posterior, problem.family)
    ratio = explained_share(blocks, posterior, statistics)
    return trace.result(posterior, value, ratio)


def explained_share(blocks: Blocks, q: NormalPosterior, statistics: ObservedStatistics) -> list[float]:
    """Share of the variance of observed values around gene means that each factor explains."""
    n = len(q.cell_mean)
    observed = statistics.observed()
    around = statistics.yy - statistics.response[:, 0].square() / observed.clamp_min(torch.finfo(observed.dtype).tiny)
    of_genes = q.gene_mean[:, 1:].square()

    def squares(batch: Batch, factors: Tensor) -> Tensor:
        return (batch.observed_times_cells(factors.square()) * of_genes).sum(0)

    explained = torch.stack(list(blocks.each(squares, blocks.split(q.cell_mean[:, 1:])))).sum(0)
    return (explained / n / around.sum().clamp_min(1e-300)).tolist()


def as_posterior(g: ObservedGlobals, cells: Rows, *, on_device: bool = False) -> NormalPosterior:
    """q in the gauge of the fit, under its own noise.

    For predictions within an epoch mu stays `on_device`: to read it is to wait for all that was asked before.
    """
    sigma, prior = g.precision.rsqrt(), g.gene_prior
    return NormalPosterior(
        mu=cast("float", g.mu) if on_device else float(g.mu),
        cell_mean=cells.mean,
        cell_cov=Packed(cells.cov),
        gene_mean=g.gene_mean,
        gene_cov=PackedUnderNoise(g.gene_cov, sigma, prior.cov),
        noise=NormalNoise(sigma, sigma),
        cell_prior=g.cell_prior,
        gene_prior=prior,
    )


def _to_posterior(
    problem: Problem, g: ObservedGlobals, cells: Sequence[Rows], statistics: ObservedStatistics, squares: Tensor
) -> NormalPosterior:
    """q in the stored gauge, genes under the noise for predicting; their means stay those of the fit."""
    sigma = g.precision.rsqrt()
    predictive = sigma if problem.noise == "gene" else shrunk_variances(problem, statistics, squares).sqrt()
    if problem.noise == "shared":
        under = replace(g, precision=predictive.square().reciprocal())
        g = replace(g, gene_cov=update_genes(problem, under, statistics)[0].gene_cov)
    joined = Rows.joined(cells)
    q = as_posterior(g, replace(joined, cov=joined.cov.float()))
    q = replace(q, noise=NormalNoise(sigma, predictive))
    return to_stored_gauge(replace(q, gene_cov=PackedUnderNoise(g.gene_cov.float(), predictive, q.gene_prior.cov)))
