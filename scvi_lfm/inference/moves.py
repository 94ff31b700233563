"""The gauge moves that raise the ELBO between steps, with the prior held."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..model.priors import FLOOR, MU_SCALE
from ..posterior.gauge import Move, balance, identity, shift_constants, translate_cells, translate_genes

if TYPE_CHECKING:
    from torch import Tensor

    from .state import CellStatistics, Globals


def improve_gauge(
    g: Globals, statistics: CellStatistics, cell_cov: Tensor, n_cells: int, *, rotates: bool
) -> tuple[Globals, CellStatistics, Tensor]:
    """Translate, shift and, if asked, rotate; each move is optimal given the others."""
    total = identity(g.n_factors, g.mu.device)
    zz = g.weighted_moment(torch.ones_like(g.precision))
    # the best moves depend on three small records alone; genes and statistics are moved once, by their product
    tracked, averages = g, statistics
    for best in (_best_cell_translation, _best_gene_translation, _best_constants):
        move = best(tracked, averages, zz, n_cells)
        tracked = replace(tracked, mu=tracked.mu + move.mu_shift)
        averages = replace(averages, xx=_congruent(move.cell_moments(), averages.xx))
        zz, total = _congruent(move.gene_moments(), zz), total.then(move)
    scales = g.scales
    if rotates:
        move = balance(averages.xx[2:, 2:] / torch.outer(scales.A, scales.A), zz[2:, 2:])
        zz, total = _congruent(move.gene_moments(), zz), total.then(move)
        scales = replace(scales, B=(zz.diagonal()[2:] / zz[0, 0]).clamp_min(FLOOR / g.precision.mean()).sqrt())
    moved = replace(g.moved(total), scales=scales)
    return moved, statistics.moved(total), total.cell_cov(cell_cov)


def _congruent(linear: Tensor, moment: Tensor) -> Tensor:
    return linear @ moment @ linear.T


def _best_cell_translation(g: Globals, statistics: CellStatistics, zz: Tensor, n_cells: int) -> Move:
    cell_precision = n_cells / g.scales.A.square()
    matrix = torch.diag(cell_precision) + zz[2:, 2:] / g.scales.b.square()
    target = cell_precision * statistics.xx[0, 2:] - zz[1, 2:] / g.scales.b.square()
    return translate_cells(torch.linalg.solve(matrix, target))


def _best_gene_translation(g: Globals, statistics: CellStatistics, zz: Tensor, n_cells: int) -> Move:
    gene_precision = 1 / g.scales.B.square()
    matrix = torch.diag(zz[0, 0] * gene_precision) + n_cells * statistics.xx[2:, 2:] / g.scales.a.square()
    target = gene_precision * zz[0, 2:] - n_cells * statistics.xx[1, 2:] / g.scales.a.square()
    return translate_genes(torch.linalg.solve(matrix, target))


def _best_constants(g: Globals, statistics: CellStatistics, zz: Tensor, n_cells: int) -> Move:
    mu_precision = MU_SCALE**-2
    cells, genes = n_cells / g.scales.a.square(), 1 / g.scales.b.square()
    matrix = torch.stack(
        [
            torch.stack([cells + mu_precision, torch.full_like(cells, mu_precision)]),
            torch.stack([torch.full_like(cells, mu_precision), zz[0, 0] * genes + mu_precision]),
        ]
    )
    target = torch.stack([cells * statistics.xx[0, 1], genes * zz[0, 1]]) - mu_precision * g.mu
    shift = torch.linalg.solve(matrix, target)
    return shift_constants(shift[0], shift[1], g.n_factors)
