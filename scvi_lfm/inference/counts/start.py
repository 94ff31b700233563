"""Starting points for counts: margins first, then factors from a quick Normal fit of log values of some cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...data import CellMatrix
from ...model.priors import initial_scales
from ...posterior.packed import pack
from ...posterior.rates import GeneFeatures
from ..initialisation import add_random_factors, fit_without_factors
from ..sweep import LocalStep
from ..sweep import Problem as NormalProblem
from .cell_step import cell_step
from .gene_step import cell_statistics, gene_step
from .state import Cells, Globals, cell_prior

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import scipy.sparse as sp
    from torch import Tensor

    from .state import Problem, Statistics

# sweeps for the margins: more where they cost nothing
LEAST_SWEEPS, MOST_SWEEPS, ENTRIES_SWEPT = 2, 20, 2e7
GENE_STEPS = 3
# spread of log rates over genes and cells, and of one factor, before anything is learned
SPREAD, FACTOR_SPREAD, ACTIVITY_SPREAD = 1.0, 0.2, 0.3
START_DISPERSION = 0.1
START_VAR = 0.05


def fit_margins(
    problem: Problem, y: Sequence[Callable[[], Tensor]], log_size: list[Tensor], prior_scales: Mapping[str, object]
) -> tuple[Globals, Cells]:
    """The model without factors on some blocks of cells, each read when it is called: q(b) and q(a)."""
    device = log_size[0].device
    total = torch.stack([block().sum(0, dtype=torch.float64) for block in y]).sum(0)
    size = torch.cat(log_size).double().exp().sum()
    # half a molecule: a gene that was not seen has a finite rate
    log_rate = ((total + 0.5) / size).log()
    mu = log_rate.mean()
    given = {name: value for name, value in prior_scales.items() if name not in {"A", "B"}}
    scales = initial_scales(0, given, torch.full_like(mu, SPREAD))
    if "a" not in given:
        scales = replace(scales, a=scales.a * ACTIVITY_SPREAD)
    if "b" not in given:
        scales = replace(scales, b=(log_rate - mu).square().mean().sqrt().clamp_min(1e-3))
    start = START_DISPERSION if problem.likelihood.LEARNS_DISPERSION else 0.0
    g = Globals(
        mu=mu,
        gene_mean=(log_rate - mu).float()[:, None],
        gene_cov=torch.full((problem.n_genes, 1), START_VAR, dtype=torch.float32, device=device),
        dispersion=torch.full((problem.n_genes,), start, dtype=torch.float32, device=device),
        scales=scales,
    )
    cells = [Cells(s.new_zeros(len(s), 1), s.new_full((len(s), 1), START_VAR), s) for s in log_size]
    n_entries = sum(map(len, log_size)) * problem.n_genes
    for _ in range(int(min(max(ENTRIES_SWEPT / n_entries, LEAST_SWEEPS), MOST_SWEEPS))):
        features = GeneFeatures.of(g.gene_mean, g.gene_cov)
        visited = [_visit(problem, g, features, read(), part) for read, part in zip(y, cells, strict=True)]
        cells = [part for part, _ in visited]
        whole = visited[0][1].scaled(len(cells[0].mean))
        for part, statistics in visited[1:]:
            whole = whole.plus(statistics, len(part.mean))
        g = gene_step(problem, g, whole.scaled(1 / sum(len(part.mean) for part in cells)))
    everyone = Cells(*(torch.cat(parts) for parts in zip(*((c.mean, c.cov, c.log_size) for c in cells), strict=True)))
    return g, everyone


def _visit(problem: Problem, g: Globals, features: GeneFeatures, y: Tensor, cells: Cells) -> tuple[Cells, Statistics]:
    cells, _ = cell_step(y, cells, features, g.mu, g.dispersion, problem.likelihood, cell_prior(g), problem.family)
    return cells, cell_statistics(problem, g, features, y, cells)


def log_values(values: sp.csr_array | np.ndarray, log_size: np.ndarray) -> CellMatrix:
    """log(1 + y / s) of some cells, in the form that they came in."""
    size = np.exp(log_size)
    if isinstance(values, np.ndarray):
        return CellMatrix(np.log1p(values / size[:, None]).astype(np.float32))
    logged = values.astype(np.float32)
    logged.data = np.log1p(logged.data / np.repeat(size, np.diff(values.indptr)).astype(np.float32))
    return CellMatrix(logged)


def first_factors(logged: CellMatrix, n_factors: int, device: torch.device, seed: int) -> Tensor:
    """A of some cells, (cells, r), from a few sweeps of the Normal model; mean E[A A'] = I."""
    problem = NormalProblem(*logged.shape, "row_block", "shared")
    batch = logged.batch(None, device)
    step = fit_without_factors(problem, batch, {})
    generator = torch.Generator().manual_seed(seed)
    step = add_random_factors(problem, step.globals, batch, n_factors, {}, generator)
    return LocalStep(problem, step.globals)(batch).mean[:, 1:].float()


def add_factors(
    problem: Problem,
    g: Globals,
    factors: Tensor,
    y: Tensor,
    activity: Cells,
    prior_scales: Mapping[str, object],
) -> tuple[Globals, Statistics]:
    """Genes, and the statistics behind them, from one block of cells with known factors (cells, r)."""
    r = factors.shape[1]
    m = problem.n_genes
    scales = initial_scales(r, prior_scales, g.scales.b.new_tensor(FACTOR_SPREAD))
    scales = replace(scales, a=g.scales.a, b=g.scales.b)
    gene_mean = torch.cat([g.gene_mean, g.gene_mean.new_zeros(m, r)], dim=1)
    var = torch.cat([g.gene_cov, g.gene_cov.new_full((m, r), START_VAR / 5)], dim=1)
    g = replace(g, gene_mean=gene_mean, gene_cov=pack(torch.diag_embed(var)), scales=scales)
    cells = with_factors(activity, factors * scales.A.float())
    for number in range(GENE_STEPS):
        features = GeneFeatures.of(g.gene_mean, g.gene_cov)
        statistics = cell_statistics(problem, g, features, y, cells)
        g = gene_step(problem, g, statistics)
        if number == 0 and "B" not in prior_scales:  # relevance is judged once the genes have moved
            g = replace(g, scales=replace(g.scales, B=scales.B))
    return g, statistics


def with_factors(activity: Cells, factors: Tensor) -> Cells:
    """Cells with q(a) and factors at known means."""
    mean = torch.cat([activity.mean, factors], dim=1)
    var = torch.cat([activity.cov, torch.full_like(factors, START_VAR)], dim=1)
    return Cells(mean, pack(torch.diag_embed(var)), activity.log_size)
