"""The gauge moves that raise the ELBO between steps, with the prior held."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..model.priors import FLOOR, MU_SCALE
from ..posterior.gauge import Move, absorb, balance, identity, shift_constants, translate_cells, translate_genes

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import PriorScales
    from .normal.state import NormalGlobals, NormalStatistics
    from .state import Globals


def improve_gauge(
    g: NormalGlobals, statistics: NormalStatistics, cell_cov: Tensor, n_cells: int, *, rotates: bool
) -> tuple[NormalGlobals, NormalStatistics, Tensor]:
    """The state after the moves that raise its ELBO, with the prior at its best for them."""
    move, scales = best_move(g, statistics.xx, n_cells, rotates=rotates)
    return replace(g.moved(move), scales=scales), statistics.moved(move), move.cell_cov(cell_cov)


def best_move(g: Globals, xx: Tensor, n_cells: int, *, rotates: bool) -> tuple[Move, PriorScales]:
    """Translate, shift and, if asked, rotate; each move is optimal given the others.

    `xx` is the mean over cells of E[x x'], x = (1, a, A), and `xi_xi` the sum over genes of E[xi xi'], xi = (1, b, B).
    Also the prior scales that the rotation brings. With covariates, x = (1, a, zeta, A) and xi = (1, b, beta, B), and
    what they can explain of A moves to beta first.
    """
    p = g.n_known
    total = identity(p + g.n_factors, g.mu.device)
    xi_xi = g.second_moment()
    # the best moves depend on three small records alone; genes and statistics are moved once, by their product
    mu, scales = g.mu, g.scales
    moves = (_best_cell_translation, _best_gene_translation, _best_constants)
    for best in (_best_absorption, *moves) if p and g.n_factors else moves:
        move = best(mu, scales, xx, xi_xi, n_cells)
        mu, xx = mu + move.mu_shift, _congruent(move.cell_moments(), xx)
        xi_xi, total = _congruent(move.gene_moments(), xi_xi), total.then(move)
    if rotates and g.n_factors:
        factors = slice(2 + p, None)
        move = balance(xx[factors, factors] / torch.outer(scales.A, scales.A), xi_xi[factors, factors], p)
        xi_xi, total = _congruent(move.gene_moments(), xi_xi), total.then(move)
        scales = replace(scales, B=(xi_xi.diagonal()[factors] / xi_xi[0, 0]).clamp_min(FLOOR * g.noise_var).sqrt())
    return total, scales


def _congruent(linear: Tensor, moment: Tensor) -> Tensor:
    return linear @ moment @ linear.T


def _best_cell_translation(_: Tensor, scales: PriorScales, xx: Tensor, xi_xi: Tensor, n_cells: int) -> Move:
    p = len(scales.beta)
    factors = slice(2 + p, None)
    cell_precision = n_cells / scales.A.square()
    matrix = torch.diag(cell_precision) + xi_xi[factors, factors] / scales.b.square()
    target = cell_precision * xx[0, factors] - xi_xi[1, factors] / scales.b.square()
    return translate_cells(torch.linalg.solve(matrix, target), p)


def _best_absorption(_: Tensor, scales: PriorScales, xx: Tensor, xi_xi: Tensor, n_cells: int) -> Move:
    """`A_i -= C zeta_i`, `beta_j += C' B_j`: one system of size r in each direction of the covariates."""
    p = len(scales.beta)
    known, factors = slice(2, 2 + p), slice(2 + p, None)
    cell_precision = n_cells / scales.A.square()
    target = cell_precision[:, None] * xx[factors, known] - xi_xi[factors, known] / scales.beta.square()
    # directions in which both the covariates and their prior are diagonal
    eig, vectors = torch.linalg.eigh(scales.beta[:, None] * xx[known, known] * scales.beta)
    matrices = torch.diag_embed(eig[:, None] * cell_precision) + xi_xi[factors, factors]
    columns = (target * scales.beta) @ vectors
    slopes = torch.linalg.solve(matrices, columns.T[..., None])[..., 0].T @ vectors.T * scales.beta
    return absorb(torch.cat([torch.zeros_like(slopes[:1]), slopes]))


def _best_gene_translation(_: Tensor, scales: PriorScales, xx: Tensor, xi_xi: Tensor, n_cells: int) -> Move:
    gene_precision = 1 / torch.cat([scales.beta, scales.B]).square()
    matrix = torch.diag(xi_xi[0, 0] * gene_precision) + n_cells * xx[2:, 2:] / scales.a.square()
    target = gene_precision * xi_xi[0, 2:] - n_cells * xx[1, 2:] / scales.a.square()
    return translate_genes(torch.linalg.solve(matrix, target))


def _best_constants(mu: Tensor, scales: PriorScales, xx: Tensor, xi_xi: Tensor, n_cells: int) -> Move:
    mu_precision = MU_SCALE**-2
    cells, genes = n_cells / scales.a.square(), 1 / scales.b.square()
    matrix = torch.stack(
        [
            torch.stack([cells + mu_precision, torch.full_like(cells, mu_precision)]),
            torch.stack([torch.full_like(cells, mu_precision), xi_xi[0, 0] * genes + mu_precision]),
        ]
    )
    target = torch.stack([cells * xx[0, 1], genes * xi_xi[0, 1]]) - mu_precision * mu
    shift = torch.linalg.solve(matrix, target)
    return shift_constants(shift[0], shift[1], len(scales.beta) + len(scales.A))
