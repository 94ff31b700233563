"""Guides of the Pyro engine for counts, in which each cell and each gene has parameters of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from pyro.distributions.transforms import SplineAutoregressive
from pyro.nn import AutoRegressiveNN
from torch import nn
from torch.nn import functional

from ...linalg.packed import pack
from ...model import GuideParameters, flow_guide, guide, mean_field_guide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

PROGRAMS = {"mean_field": mean_field_guide, "row_block": guide, "low_rank": guide, "flow": flow_guide}
RANK = 3
START_WEIGHT = 0.1
START_MU_SCALE = 0.05
FLOW_BINS, FLOW_BOUND = 8, 5.0
FLOW_DRAWS = 2**16


@dataclass(frozen=True)
class RowMoments:
    """Means and packed covariances of rows under a guide."""

    mu: float
    cell_mean: Tensor  # (n, r+1)
    cell_cov: Tensor  # (n, p)
    gene_mean: Tensor  # (m, r+1)
    gene_cov: Tensor  # (m, p)


class RowParameters(nn.Module):
    """Means and Cholesky factors, one of each for every row: `L = D U` with D a positive diagonal.

    U is the identity for `"mean_field"`, the Cholesky factor of `I + W W'` for `"low_rank"`, and else any lower
    triangle with ones on its diagonal. A table with all of them by row, so that a batch touches its own rows alone.
    """

    def __init__(self, loc: Tensor, tril: Tensor, form: str) -> None:
        super().__init__()
        self.form, self.k = form, loc.shape[1]
        self._below = torch.tril_indices(self.k, self.k, -1, device=loc.device)
        if form == "mean_field":
            scale, rest = tril.norm(dim=-1), loc[:, :0]
        elif form == "low_rank":
            scale, rest = tril.norm(dim=-1), START_WEIGHT * _draws(len(loc), self.k * RANK).to(loc)
        else:
            scale = tril.diagonal(dim1=-2, dim2=-1)
            rest = (tril / scale[..., None])[:, self._below[0], self._below[1]]
        self.table = nn.Parameter(torch.cat([loc, scale.log(), rest], dim=1))

    def forward(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means (rows, k) and Cholesky factors (rows, k, k); all rows if None."""
        table = self.table if rows is None else functional.embedding(rows, self.table, sparse=True)
        loc, log_scale, rest = table.split([self.k, self.k, table.shape[1] - 2 * self.k], dim=1)
        unit = torch.eye(self.k, dtype=loc.dtype, device=loc.device).repeat(len(loc), 1, 1)
        if self.form == "low_rank":
            weights = rest.unflatten(1, (self.k, RANK))
            unit = torch.linalg.cholesky(unit + weights @ weights.mT)
        elif self.form != "mean_field":
            unit[:, self._below[0], self._below[1]] = rest
        return loc, log_scale.exp()[..., None] * unit


class RowGuide(nn.Module):
    """q(mu) and q of all rows in one of the forms of `PROGRAMS`."""

    vectorises = True

    def __init__(self, form: str, mu: Tensor, cells: tuple[Tensor, Tensor], genes: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.form, self.n_cells = form, len(cells[0])
        self.mu_loc = nn.Parameter(mu.clone())
        self.log_mu_scale = nn.Parameter(torch.full_like(mu, math.log(START_MU_SCALE)))
        self.cells, self.genes = RowParameters(*cells, form), RowParameters(*genes, form)
        self.cell_flow, self.gene_flow = (_flow(self.cells.k).to(mu) if form == "flow" else None for _ in range(2))

    def program(self, rows: Tensor) -> Callable[..., Any]:
        """The Pyro guide of some cells, a function of their values."""
        cell_loc, cell_tril = self.cells(rows)
        gene_loc, gene_tril = self.genes()
        q = GuideParameters(
            mu_loc=self.mu_loc,
            mu_scale=self.log_mu_scale.exp(),
            cell_loc=cell_loc,
            cell_tril=cell_tril,
            gene_loc=gene_loc,
            gene_tril=gene_tril,
            cell_flow=self.cell_flow,
            gene_flow=self.gene_flow,
        )
        return partial(PROGRAMS[self.form], q=q, n_cells=self.n_cells, rows=rows)

    def dense_parameters(self) -> list[Tensor]:
        """Parameters but those of cells."""
        return [parameter for parameter in self.parameters() if parameter is not self.cells.table]

    def sparse_parameters(self) -> list[Tensor]:
        """The parameters of cells."""
        return [self.cells.table]

    def moments(self, _: Iterable[tuple[Tensor, Tensor]]) -> RowMoments:
        """Moments, exact for Normal rows; those of a flow's output are estimated from many draws, once for all rows."""
        with torch.no_grad():
            cell_mean, cell_cov = _pushed(self.cells(), self.cell_flow)
            gene_mean, gene_cov = _pushed(self.genes(), self.gene_flow)
            return RowMoments(float(self.mu_loc.detach()), cell_mean, cell_cov, gene_mean, gene_cov)


def _draws(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cpu")


def _flow(k: int) -> SplineAutoregressive:
    """Monotone splines of each coordinate, whose knots depend on those before it; the identity at first."""
    bins = FLOW_BINS
    sizes = [bins, bins, bins - 1, bins]
    order = cast("torch.LongTensor", torch.arange(k, device="cpu"))
    network = AutoRegressiveNN(k, [4 * k], param_dims=sizes, permutation=order, nonlinearity=nn.Tanh())
    with torch.no_grad():
        last = cast("nn.Linear", network.layers[-1])
        last.weight.zero_()
        last.bias.zero_()
        # slopes of one
        last.bias.view(sum(sizes), k)[2 * bins : 3 * bins - 1] = math.log(math.expm1(1 - 1e-3))
    return SplineAutoregressive(k, network, count_bins=bins, bound=FLOW_BOUND)


def _pushed(rows: tuple[Tensor, Tensor], flow: SplineAutoregressive | None) -> tuple[Tensor, Tensor]:
    """Means and packed covariances of `loc + L f(z)`."""
    loc, tril = (part.detach() for part in rows)
    if flow is None:
        return loc, pack(tril @ tril.mT)
    shape = torch.cat([flow(part) for part in _draws(FLOW_DRAWS, loc.shape[1]).to(loc).split(2**13)])
    root = tril @ torch.linalg.cholesky(torch.cov(shape.T))
    return loc + tril @ shape.mean(0), pack(root @ root.mT)
