r"""The model and its guides as Pyro programs: the specification that the closed forms are tested against.

.. math::

    \eta_{ij} = \mu + a_i + b_j + A_i \cdot B_j, \qquad y_{ij} \sim \mathrm{Normal}(\eta_{ij}, \sigma_j^2)

Cells lie along plate dimension -2, genes along -1. Both programs are pure functions of their arguments: parameters are
tensors in :class:`GuideParameters` and :class:`Scales`, not entries of Pyro's parameter store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal

from .priors import MU_SCALE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scales:
    """Standard deviations of the model, as tensors."""

    a: Tensor  # ()
    A: Tensor  # (r,)
    b: Tensor  # ()
    B: Tensor  # (r,)
    sigma: Tensor  # () or (m,)


@dataclass(frozen=True)
class GuideParameters:
    """Parameters of q: means and lower Cholesky factors."""

    mu_loc: Tensor  # ()
    mu_scale: Tensor  # ()
    cell_loc: Tensor  # (batch, r+1): the means of (a_i, A_i) for the cells of the batch
    cell_tril: Tensor  # (r+1, r+1)
    gene_loc: Tensor  # (m, r+1): the means of (b_j, B_j)
    gene_tril: Tensor  # (r+1, r+1), or (m, r+1, r+1) where genes differ


def model(y: Tensor, scales: Scales, *, n_cells: int | None = None, rows: Tensor | None = None) -> Tensor:
    """Draw every latent, then observe `y`.

    Parameters
    ----------
    y
        Values of the cells in the batch, (batch, m).
    scales
        Standard deviations of priors and noise.
    n_cells
        Number of cells in the whole data set, by default those of `y`.
    rows
        Positions of the batch's cells in the data set, (batch,). The log density of the batch is multiplied by
        `n_cells / batch`.

    Returns
    -------
    The observed values, (batch, m).
    """
    n_cells = y.shape[0] if n_cells is None else n_cells
    rows = torch.arange(y.shape[0], device=y.device) if rows is None else rows
    cells = pyro.plate("cells", n_cells, subsample=rows, dim=-2)
    genes = pyro.plate("genes", y.shape[1], subsample=torch.arange(y.shape[1], device=y.device), dim=-1)
    zero = y.new_zeros(())

    mu = pyro.sample("mu", Normal(zero, zero + MU_SCALE))
    with cells:
        a = pyro.sample("a", Normal(zero, scales.a))
        A = pyro.sample("A", Normal(torch.zeros_like(scales.A), scales.A).to_event(1))
    with genes:
        b = pyro.sample("b", Normal(zero, scales.b))
        B = pyro.sample("B", Normal(torch.zeros_like(scales.B), scales.B).to_event(1))
    with cells, genes:
        eta = mu + a + b + (A * B).sum(-1)
        return pyro.sample("y", Normal(eta, scales.sigma), obs=y)


def guide(
    y: Tensor, q: GuideParameters, *, n_cells: int | None = None, rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Row-block guide: (a_i, A_i) jointly Normal in each cell, (b_j, B_j) in each gene; everything else independent.

    Each block is drawn as `q(a) q(A | a)`, so that the sites are the model's.

    Parameters
    ----------
    y, n_cells, rows
        As in :func:`model`.
    q
        Parameters of the guide.

    Returns
    -------
    One draw of each site.
    """
    n_cells = y.shape[0] if n_cells is None else n_cells
    rows = torch.arange(y.shape[0], device=y.device) if rows is None else rows
    cells = pyro.plate("cells", n_cells, subsample=rows, dim=-2)
    genes = pyro.plate("genes", y.shape[1], subsample=torch.arange(y.shape[1], device=y.device), dim=-1)

    mu = pyro.sample("mu", Normal(q.mu_loc, q.mu_scale))
    with cells:
        a, A = _sample_block("a", "A", q.cell_loc[:, None, :], q.cell_tril)
    with genes:
        b, B = _sample_block("b", "B", q.gene_loc, q.gene_tril)
    return {"mu": mu, "a": a, "A": A, "b": b, "B": B}


def mean_field_guide(
    y: Tensor, q: GuideParameters, *, n_cells: int | None = None, rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean-field guide: every latent an independent Normal, its scale on the diagonal of the Cholesky factor.

    Parameters
    ----------
    y, n_cells, rows
        As in :func:`model`.
    q
        Parameters of the guide; what lies off the diagonals is not used.

    Returns
    -------
    One draw of each site.
    """
    n_cells = y.shape[0] if n_cells is None else n_cells
    rows = torch.arange(y.shape[0], device=y.device) if rows is None else rows
    cells = pyro.plate("cells", n_cells, subsample=rows, dim=-2)
    genes = pyro.plate("genes", y.shape[1], subsample=torch.arange(y.shape[1], device=y.device), dim=-1)
    cell_loc, cell_scale = q.cell_loc[:, None, :], q.cell_tril.diagonal(dim1=-2, dim2=-1)
    gene_loc, gene_scale = q.gene_loc, q.gene_tril.diagonal(dim1=-2, dim2=-1)

    mu = pyro.sample("mu", Normal(q.mu_loc, q.mu_scale))
    with cells:
        a = pyro.sample("a", Normal(cell_loc[..., 0], cell_scale[..., 0]))
        A = pyro.sample("A", Normal(cell_loc[..., 1:], cell_scale[..., 1:]).to_event(1))
    with genes:
        b = pyro.sample("b", Normal(gene_loc[..., 0], gene_scale[..., 0]))
        B = pyro.sample("B", Normal(gene_loc[..., 1:], gene_scale[..., 1:]).to_event(1))
    return {"mu": mu, "a": a, "A": A, "b": b, "B": B}


def _sample_block(scalar: str, vector: str, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a jointly Normal (scalar, vector), the scalar first."""
    first = pyro.sample(scalar, Normal(loc[..., 0], tril[..., 0, 0]))
    standardised = (first - loc[..., 0]) / tril[..., 0, 0]
    conditional_loc = loc[..., 1:] + standardised[..., None] * tril[..., 1:, 0]
    rest = pyro.sample(vector, MultivariateNormal(conditional_loc, scale_tril=tril[..., 1:, 1:]))
    return first, rest
