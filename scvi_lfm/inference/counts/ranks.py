"""Fewer factors: a part of the state of a count fit, and the lower bound of every smaller rank."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...posterior.packed import unpack
from ..ranks import GENE_STEPS, RankCurve, effective_factors
from .gene_step import gene_step
from .objective import elbo_per_entry
from .state import Cells, Globals, Statistics, cell_prior, gene_prior

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .objective import EntrySample
    from .state import Problem


def count_curve(
    problem: Problem,
    g: Globals,
    cells: Cells,
    statistics: Statistics,
    sample: EntrySample,
    seed: int,
    score: Callable[[Globals, Cells], float] | None = None,
) -> RankCurve:
    """The lower bound of the leading k factors for every k, measured in the cells of a block.

    What cells say of the factors stays, at the rates that they have with all of them. Entries and random numbers are
    the same for every rank. `score` gives the log density of held-out entries.
    """
    scores: list[float] = []
    values, r, width = [], g.n_factors, cells.mean.shape[1]
    effective = effective_factors(statistics.xx, unpack(cells.cov.double().mean(0)), r)
    for k in range(r, -1, -1):
        if k < r:
            g, cells, statistics = leading_factors(problem, g, cells, statistics, k)
        priors = cell_prior(g), gene_prior(g)
        values.append(elbo_per_entry(problem, g, cells, priors, sample, seed, width=width))
        scores += [] if score is None else [score(g, cells)]
    return RankCurve(values[::-1], effective, scores[::-1] or None)


def leading_factors(
    problem: Problem, g: Globals, cells: Cells, statistics: Statistics, n_factors: int
) -> tuple[Globals, Cells, Statistics]:
    """The leading factors alone, and the genes fitted to what cells say of them."""
    on = torch.arange(g.n_factors, device=g.mu.device) < n_factors
    g, cells, statistics = (
        globals_with(g, on),
        cells_with(cells, on, g.n_known),
        statistics_with(statistics, on, g.n_known),
    )
    for _ in range(GENE_STEPS):
        g = gene_step(problem, g, statistics)
    return g, cells, statistics


def globals_with(g: Globals, on: Tensor) -> Globals:
    """Without the factors that are not in `on` (r,)."""
    kept, packed = _kept(on, 1 + g.n_known)
    return replace(
        g,
        gene_mean=g.gene_mean[:, kept],
        gene_cov=g.gene_cov[:, packed],
        scales=replace(g.scales, A=g.scales.A[on], B=g.scales.B[on]),
    )


def cells_with(cells: Cells, on: Tensor, n_known: int = 0) -> Cells:
    """Without the factors that are not in `on` (r,)."""
    kept, packed = _kept(on, 1 + n_known)
    return replace(cells, mean=cells.mean[:, kept], cov=cells.cov[:, packed])


def statistics_with(statistics: Statistics, on: Tensor, n_known: int = 0) -> Statistics:
    """Without the factors that are not in `on` (r,)."""
    kept, packed = _kept(on, 2 + n_known)
    return replace(
        statistics,
        xx=statistics.xx[kept][:, kept],
        weighted=statistics.weighted[:, packed],
        response=statistics.response[:, kept],
    )


def _kept(on: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """Which of the columns (`ahead` that always stay, then factors) and of their packed products stay."""
    kept = torch.cat([on.new_ones(ahead), on])
    first, second = torch.tril_indices(len(kept), len(kept), device=kept.device)
    return kept, kept[first] & kept[second]
