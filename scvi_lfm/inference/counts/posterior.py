"""From q of an engine for counts to the posterior that is stored, and the ELBO of that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...linalg.covariances import Packed
from ...model.noise import CountNoise
from ...model.priors import initial_scales
from ...posterior import CountPosterior
from ...posterior.recomputed import Recomputed
from ..normal.finish import population
from .objective import elbo_per_entry
from .state import Cells, CountGlobals

if TYPE_CHECKING:
    from torch import Tensor

    from .objective import EntrySample
    from .state import CountProblem


def count_posterior(likelihood: str, g: CountGlobals, cells: Cells, cell_moment: Tensor) -> CountPosterior:
    """The posterior of a likelihood's name, in the gauge of the fit, with E[x x'] of its cells (p, p)."""
    return CountPosterior(
        mu=float(g.mu),
        cell_mean=cells.mean.double(),
        cell_cov=Packed(cells.cov),
        gene_mean=g.gene_mean.double(),
        gene_cov=Packed(g.gene_cov),
        noise=CountNoise(likelihood, g.dispersion.double(), cells.log_size.double(), g.levels),
        cell_prior=population(g.cell_prior.cov, cell_moment, g.n_known),
        gene_prior=g.gene_prior,
        n_known=g.n_known,
    )


def with_exact_cov(likelihood: str, g: CountGlobals, cells: Cells, family: str) -> Cells:
    """Cells that share a covariance, with their own."""
    noise = CountNoise(likelihood, g.dispersion, cells.log_size)
    exact = Recomputed.of(float(g.mu), cells.mean, g.gene_mean, Packed(g.gene_cov), noise, g.cell_prior, family)
    return replace(cells, cov=exact.packed())


def stored_elbo(
    problem: CountProblem, q: CountPosterior, rows: Tensor, log_size: Tensor, sample: EntrySample, seed: int
) -> float:
    """The ELBO per entry of what is stored, measured in the cells at `rows`; `log_size` is that of all cells."""
    cells = Cells(q.cell_mean[rows].float(), q.cell_cov.at(rows).packed(), log_size[rows])
    mu = torch.as_tensor(q.mu, dtype=torch.float64, device=rows.device)
    scales = initial_scales(q.n_factors, {}, mu)  # the priors are given in their stored form
    dispersion, levels = q.noise.dispersion.float(), q.noise.levels
    g = CountGlobals(mu, q.gene_mean.float(), scales, q.gene_cov.packed(), dispersion, levels)
    priors = q.cell_prior.given_known(q.n_known), q.gene_prior
    return elbo_per_entry(problem, g, cells, priors, sample, seed)
