"""Starting points for counts: margins first, then factors from a quick Normal fit of log values of some cells."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..._workers import in_order
from ...linalg.packed import diagonal, pack
from ...model.likelihoods.ordinal import marginal_thresholds
from ...model.priors import initial_scales, with_known
from ..passes import average
from .cell_step import cell_step
from .gene_step import DISPERSION_EVERY, Asked, cell_statistics, gene_step
from .state import Cells, CountGlobals
from .sweep import visit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ...data import Batch, CellMatrix
    from .state import CountProblem, CountStatistics

# sweeps for the margins: more where they cost nothing, and with covariates, whose coefficients begin at zero
LEAST_SWEEPS, LEAST_WITH_COVARIATES, MOST_SWEEPS, ENTRIES_SWEPT = 3, 8, 20, 2e7
# cells that tell about the margins of genes, at the least: factors and minibatches soon correct them
MARGIN_CELLS = 768
GENE_STEPS = 2
# spread of log rates over genes and cells, and of one factor, before anything is learned
SPREAD, FACTOR_SPREAD, ACTIVITY_SPREAD = 1.0, 0.2, 0.3
START_DISPERSION = 0.1
ABUNDANCE_SPREAD = 0.5  # of levels
TINY = 1e-6
START_VAR, LOADING_VAR = 0.05, 0.01


def fit_margins(
    problem: CountProblem,
    blocks: Sequence[Callable[[], Batch]],
    log_size: list[Tensor],
    prior_scales: Mapping[str, object],
    known: Sequence[Tensor] | None = None,
    levels: tuple[float, float] | None = None,
) -> tuple[CountGlobals, Cells]:
    """The model without factors on some blocks of cells, each read when it is called: q(b, beta) and q(a).

    Genes are learned from the first blocks alone, cells of the others placed once.
    `known` holds the covariates of each block, (cells, p); `levels` are the lowest and the highest, of ordinal values.
    """
    known = [s.new_zeros(len(s), 0) for s in log_size] if known is None else known
    p, some = known[0].shape[1], _enough([len(s) for s in log_size])
    device = log_size[0].device
    first_levels = None if levels is None else _thresholds_of(blocks[:some], *levels)
    # levels begin at thresholds that tell of no gene
    nothing = torch.zeros(problem.n_genes, dtype=torch.float64, device=device)
    eta = _log_rates(blocks[:some], log_size[:some]) if levels is None else nothing
    mu = eta.mean()
    scales = initial_scales(0, prior_scales, torch.full_like(mu, SPREAD), p)
    if "a" not in prior_scales:
        scales = replace(scales, a=scales.a * ACTIVITY_SPREAD)
    if "b" not in prior_scales:
        b = (eta - mu).square().mean().sqrt().clamp_min(1e-3) if levels is None else ABUNDANCE_SPREAD * scales.b
        scales = replace(scales, b=b)
    start = START_DISPERSION if problem.likelihood.learns_dispersion else 0.0
    g = CountGlobals(
        mu=mu,
        gene_mean=torch.nn.functional.pad((eta - mu).float()[:, None], (0, p)),
        gene_cov=pack(torch.eye(1 + p, dtype=torch.float32, device=device) * START_VAR).repeat(problem.n_genes, 1),
        dispersion=torch.full((problem.n_genes,), start, dtype=torch.float32, device=device),
        scales=scales,
        levels=first_levels,
    )
    cov = pack(with_known(torch.full((1, 1), START_VAR, dtype=torch.float32, device=device), p))
    cells = [
        Cells(torch.cat([z.new_zeros(len(z), 1), z], dim=1).to(s), cov.repeat(len(s), 1), s)
        for s, z in zip(log_size, known, strict=True)
    ]
    n_cells = sum(map(len, log_size[:some]))
    affordable = ENTRIES_SWEPT / (n_cells * problem.n_genes)
    every = 1 if affordable > LEAST_SWEEPS else DISPERSION_EVERY
    for _ in range(int(min(max(affordable, LEAST_WITH_COVARIATES if p else LEAST_SWEEPS), MOST_SWEEPS))):
        cells[:some], whole = _swept(problem, g, blocks[:some], cells[:some], every)
        g = gene_step(problem, g, whole)
    cells[some:] = _placed(problem, g, blocks[some:], cells[some:])
    return g, Cells.joined(cells)


def _enough(sizes: Sequence[int]) -> int:
    """Number of blocks that hold enough cells for the margins."""
    return int(np.searchsorted(np.cumsum(sizes), MARGIN_CELLS)) + 1


def _swept(
    problem: CountProblem, g: CountGlobals, blocks: Sequence[Callable[[], Batch]], cells: Sequence[Cells], every: int
) -> tuple[list[Cells], CountStatistics]:
    """q(a) of the cells of some blocks after a step, and averages over them."""
    features = g.features()

    def sweep(block: tuple[Callable[[], Batch], Cells]) -> tuple[Cells, CountStatistics]:
        batch = block[0]()
        return visit(problem, g, features, batch, block[1], 1, Asked.one_in(every, batch.n_cells))

    visited = list(in_order(sweep, zip(blocks, cells, strict=True)))
    parts = ((len(part.mean), new) for part, new in visited)
    return [part for part, _ in visited], average(parts, sum(len(part.mean) for part in cells))


def _placed(
    problem: CountProblem, g: CountGlobals, blocks: Sequence[Callable[[], Batch]], cells: Sequence[Cells]
) -> list[Cells]:
    """q(a) of the cells of some blocks after a step."""
    features = g.features()

    def place(block: tuple[Callable[[], Batch], Cells]) -> Cells:
        batch = block[0]()
        y, observed = batch.dense(), batch.is_observed()
        return cell_step(problem, y, block[1], features, g.mu, g.parameters, g.cell_prior, observed=observed)[0]

    return list(in_order(place, zip(blocks, cells, strict=True)))


def _log_rates(blocks: Sequence[Callable[[], Batch]], log_size: list[Tensor]) -> Tensor:
    """Log rate of each gene, (m,): its molecules over the size factors of the cells in which it was observed."""

    def sums(block: tuple[Callable[[], Batch], Tensor]) -> tuple[Tensor, Tensor]:
        batch, s = block[0](), block[1].double().exp()
        observed = batch.is_observed()
        total = batch.dense().sum(0, dtype=torch.float64)
        return total, s.sum() if observed is None else s @ observed.double()

    totals, sizes = zip(*in_order(sums, zip(blocks, log_size, strict=True)), strict=True)
    # half a molecule more, so that it is finite where none was seen
    return ((reduce(torch.add, totals) + 0.5) / reduce(torch.add, sizes)).log()


def _thresholds_of(blocks: Sequence[Callable[[], Batch]], lowest: float, highest: float) -> Tensor:
    """The lowest level, and thresholds that give all levels as often as they are, (K,)."""
    counts = torch.zeros(int(highest - lowest) + 1, dtype=torch.int64, device="cpu")
    for read in blocks:
        batch = read()
        y, observed = batch.dense(), batch.is_observed()
        levels = ((y if observed is None else y[observed]) - lowest).long().flatten()
        counts += torch.bincount(levels, minlength=len(counts)).cpu()
    thresholds = marginal_thresholds(counts.numpy()) * (1 + START_VAR) ** 0.5
    return torch.tensor([lowest, *thresholds], dtype=torch.float64, device=y.device)


def log_values(matrix: CellMatrix, log_size: np.ndarray) -> CellMatrix:
    """log(1 + y / s) of some cells, in the form that they came in."""
    size = np.exp(log_size).astype(np.float32)
    return matrix.mapped(lambda y, cell, _: np.log1p(y / size[cell]))


def log_ratios(matrix: CellMatrix, log_size: np.ndarray, g: CountGlobals, activity: Tensor) -> CellMatrix:
    """Logarithms of stored counts of some cells less their margins, with `activity` (cells,).

    Where only these are data, entries that are not stored are no zeros: they leave nothing.
    """
    of_cells, of_genes = log_size + activity.cpu().numpy(), (g.mu + g.gene_mean[:, 0]).cpu().numpy()
    return matrix.mapped(lambda y, cell, gene: np.log((y + 0.5) / (np.exp(of_cells[cell] + of_genes[gene]) + 0.5)))


def standardised(matrix: CellMatrix, margins: tuple[CountGlobals, Tensor] | None) -> CellMatrix:
    """Levels of some cells over their standard deviation; less their mean and margins where only stored ones are data.

    Margins are those of the genes, and activities (cells,).
    """
    if margins is None:
        return matrix.mapped(lambda y, *_: y / _spread(y))
    g, activity = margins
    of_cells, of_genes = activity.cpu().numpy(), g.gene_mean[:, 0].cpu().numpy()

    def left(y: np.ndarray, cell: np.ndarray, gene: np.ndarray) -> np.ndarray:
        return (y - y.mean(dtype=np.float64)) / _spread(y) - (of_cells[cell] + of_genes[gene])

    return matrix.mapped(left)


def _spread(y: np.ndarray) -> float:
    return max(float(y.std(dtype=np.float64)), TINY)


def add_factors(
    problem: CountProblem,
    g: CountGlobals,
    factors: Tensor,
    batch: Batch,
    activity: Cells,
    prior_scales: Mapping[str, object],
) -> tuple[CountGlobals, CountStatistics]:
    """Genes, and the statistics behind them, from one block of cells with known factors (cells, r)."""
    r = factors.shape[1]
    var = torch.cat([diagonal(g.gene_cov), g.gene_cov.new_full((problem.n_genes, r), LOADING_VAR)], dim=1)
    g = g.with_more_factors(r, prior_scales, g.scales.b.new_tensor(FACTOR_SPREAD))
    g, scales = replace(g, gene_cov=pack(torch.diag_embed(var))), g.scales
    cells = with_factors(activity, factors * scales.A.float())
    y, observed = batch.dense(), batch.is_observed()
    asked = Asked.one_in(1 if len(y) == problem.n_cells else DISPERSION_EVERY, len(y))
    for number in range(GENE_STEPS):
        features = g.features(cells)
        statistics = cell_statistics(problem, g, features, y, cells, asked, observed)
        g = gene_step(problem, g, statistics)
        if number == 0 and "B" not in prior_scales:  # relevance is judged once the genes have moved
            g = replace(g, scales=replace(g.scales, B=scales.B))
    return g, statistics


def with_factors(activity: Cells, factors: Tensor) -> Cells:
    """Cells with q(a) and factors at known means."""
    mean = torch.cat([activity.mean, factors], dim=1)
    var = torch.cat([diagonal(activity.cov), torch.full_like(factors, START_VAR)], dim=1)
    return Cells(mean, pack(torch.diag_embed(var)), activity.log_size)
