r"""The model and its guides as Pyro programs: the specification that the closed forms are tested against.

.. math::

    \eta_{ij} = \mu + a_i + b_j + A_i \cdot B_j

.. math::

    y_{ij} \sim \mathrm{Normal}(\eta_{ij}, \sigma_j^2), \quad \text{StudentT}_\nu(\eta_{ij}, \sigma_j), \qquad
    \text{or, with } \lambda_{ij} = s_i e^{\eta_{ij}},
    y_{ij} \sim \mathrm{Poisson}(\lambda_{ij}), \quad \mathrm{NegativeBinomial}(\lambda_{ij}, \theta_j), \quad
    \mathrm{Bernoulli}(1 - e^{-\lambda_{ij}})

Cells lie along plate dimension -2, genes along -1. All programs are pure functions of their arguments: parameters are
tensors in :class:`GuideParameters` and :class:`Scales`, not entries of Pyro's parameter store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.distributions import (
    Bernoulli,
    Delta,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    TransformedDistribution,
)

from .priors import MU_SCALE

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution, TransformModule
    from torch import Tensor

_ONE = torch.ones((), dtype=torch.float32, device="cpu")


@dataclass(frozen=True)
class Scales:
    """Standard deviations of the priors, and what the likelihood needs besides eta, as tensors."""

    a: Tensor  # ()
    A: Tensor  # (r,)
    b: Tensor  # ()
    B: Tensor  # (r,)
    sigma: Tensor = _ONE  # (), (m,) or (batch, m): noise of the Normal, scale of the Student t
    df: Tensor = _ONE  # (): degrees of freedom of the Student t
    theta: Tensor = _ONE  # () or (m,): dispersion of the negative binomial, variance rate + rate^2 / theta
    beta: Tensor = _ONE  # () or (p,): of the coefficients of covariates


@dataclass(frozen=True)
class GuideParameters:
    """Parameters of q: means and lower Cholesky factors."""

    mu_loc: Tensor  # ()
    mu_scale: Tensor  # ()
    cell_loc: Tensor  # (batch, r+1): the means of (a_i, A_i) for the cells of the batch
    cell_tril: Tensor  # (r+1, r+1), or (batch, r+1, r+1) where cells differ
    gene_loc: Tensor  # (m, r+1): the means of (b_j, B_j)
    gene_tril: Tensor  # (r+1, r+1), or (m, r+1, r+1) where genes differ
    cell_flow: TransformModule | None = None  # of r+1 numbers, for `flow_guide`
    gene_flow: TransformModule | None = None


def model(
    y: Tensor,
    scales: Scales,
    *,
    likelihood: str = "normal",
    log_size: Tensor | None = None,
    n_cells: int | None = None,
    rows: Tensor | None = None,
    covariates: Tensor | None = None,
    observed: Tensor | None = None,
) -> Tensor:
    r"""Draw every latent, then observe `y`.

    Parameters
    ----------
    y
        Values of the cells in the batch, (batch, m).
    scales
        Standard deviations of priors and noise.
    likelihood
        `"normal"`, `"student_t"`, `"poisson"`, `"negative_binomial"` or `"bernoulli"`.
    log_size
        Log size factors of the cells in the batch, (batch,), for counts; None makes all size factors 1.
    n_cells
        Number of cells in the whole data set, by default those of `y`.
    rows
        Positions of the batch's cells in the data set, (batch,). The log density of the batch is multiplied by
        `n_cells / batch`.
    covariates
        Covariates zeta of the cells in the batch, (batch, p): :math:`\zeta_i \cdot \beta_j` is added to eta, with a
        site `beta` for the genes. The guides here have no such site.
    observed
        Which entries are data, (batch, m) bool; None takes all. The others say nothing, whatever their value.

    Returns
    -------
    The observed values, (batch, m).

    Examples
    --------
    A data set drawn from the model: `uncondition` draws `y` too, and only the shape of what is passed counts.

    >>> import pyro, torch
    >>> import scvi_lfm as lfm
    >>> one, each = torch.ones(()), torch.ones(3)
    >>> scales = lfm.model.Scales(a=one, A=each, b=one, B=each)
    >>> program = pyro.poutine.uncondition(lfm.model.model)
    >>> program(torch.zeros(20, 10), scales).shape
    torch.Size([20, 10])
    """
    cells, genes = _plates(y, n_cells, rows)
    zero = y.new_zeros(())

    mu = pyro.sample("mu", Normal(zero, zero + MU_SCALE))
    with cells:
        a = pyro.sample("a", Normal(zero, scales.a))
        A = pyro.sample("A", Normal(torch.zeros_like(scales.A), scales.A).to_event(1))
    with genes:
        b = pyro.sample("b", Normal(zero, scales.b))
        B = pyro.sample("B", Normal(torch.zeros_like(scales.B), scales.B).to_event(1))
        if covariates is not None:
            scale = scales.beta.to(y).expand(covariates.shape[1])
            beta = pyro.sample("beta", Normal(torch.zeros_like(scale), scale).to_event(1))
    with cells, genes:
        eta = mu + a + b + (A * B).sum(-1)
        if covariates is not None:
            eta = eta + (covariates[:, None, :] * beta).sum(-1)
        eta = eta if log_size is None else eta + log_size[:, None]
        values = observation(likelihood, eta, scales)
        return pyro.sample("y", values if observed is None else values.mask(observed), obs=y)


def observation(likelihood: str, eta: Tensor, scales: Scales) -> TorchDistribution:
    """The distribution of values given eta, which for counts is the log of a rate."""
    match likelihood:
        case "normal":
            return Normal(eta, scales.sigma)
        case "student_t":
            return StudentT(scales.df, eta, scales.sigma)
        case "poisson":
            return Poisson(eta.exp())
        case "negative_binomial":
            return NegativeBinomial(scales.theta, logits=eta - scales.theta.log())
        case "bernoulli":
            rate = eta.exp()
            # P(y = 1) / P(y = 0) = e^rate - 1
            return Bernoulli(logits=rate + (-torch.expm1(-rate)).log())
        case _:
            msg = f"There is no likelihood {likelihood!r}."
            raise ValueError(msg)


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

    Examples
    --------
    >>> import torch
    >>> import scvi_lfm as lfm
    >>> one, tril = torch.ones(()), torch.eye(4)
    >>> q = lfm.model.GuideParameters(one, one, torch.zeros(20, 4), tril, torch.zeros(10, 4), tril)
    >>> lfm.model.guide(torch.zeros(20, 10), q)["A"].shape
    torch.Size([20, 1, 3])
    """
    cells, genes = _plates(y, n_cells, rows)
    mu = pyro.sample("mu", Normal(q.mu_loc, q.mu_scale))
    with cells:
        a, A = _sample_block("a", "A", q.cell_loc[:, None, :], q.cell_tril[..., None, :, :])
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

    Examples
    --------
    >>> import torch
    >>> import scvi_lfm as lfm
    >>> one, tril = torch.ones(()), torch.eye(4)
    >>> q = lfm.model.GuideParameters(one, one, torch.zeros(20, 4), tril, torch.zeros(10, 4), tril)
    >>> lfm.model.mean_field_guide(torch.zeros(20, 10), q)["A"].shape
    torch.Size([20, 1, 3])
    """
    cells, genes = _plates(y, n_cells, rows)
    cell_loc, cell_scale = q.cell_loc[:, None, :], q.cell_tril.diagonal(dim1=-2, dim2=-1)[..., None, :]
    gene_loc, gene_scale = q.gene_loc, q.gene_tril.diagonal(dim1=-2, dim2=-1)

    mu = pyro.sample("mu", Normal(q.mu_loc, q.mu_scale))
    with cells:
        a = pyro.sample("a", Normal(cell_loc[..., 0], cell_scale[..., 0]))
        A = pyro.sample("A", Normal(cell_loc[..., 1:], cell_scale[..., 1:]).to_event(1))
    with genes:
        b = pyro.sample("b", Normal(gene_loc[..., 0], gene_scale[..., 0]))
        B = pyro.sample("B", Normal(gene_loc[..., 1:], gene_scale[..., 1:]).to_event(1))
    return {"mu": mu, "a": a, "A": A, "b": b, "B": B}


def flow_guide(
    y: Tensor, q: GuideParameters, *, n_cells: int | None = None, rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Row-block guide whose standard Normals go through a flow first: `(a_i, A_i) = loc_i + L_i f(z_i)`.

    One flow f gives its shape to all cells, and one to all genes. The blocks enter through sites of their own,
    `z_cells` and `z_genes`, from which the model's sites follow: use it with :class:`pyro.infer.Trace_ELBO`.

    Parameters
    ----------
    y, n_cells, rows
        As in :func:`model`.
    q
        Parameters of the guide, with both flows.

    Returns
    -------
    One draw of each of the model's sites.
    """
    cells, genes = _plates(y, n_cells, rows)
    mu = pyro.sample("mu", Normal(q.mu_loc, q.mu_scale))
    with cells:
        tril = q.cell_tril[..., None, :, :]
        a, A = _sample_flow("z_cells", "a", "A", q.cell_loc[:, None, :], tril, q.cell_flow)
    with genes:
        b, B = _sample_flow("z_genes", "b", "B", q.gene_loc, q.gene_tril, q.gene_flow)
    return {"mu": mu, "a": a, "A": A, "b": b, "B": B}


def _plates(y: Tensor, n_cells: int | None, rows: Tensor | None) -> tuple[pyro.plate, pyro.plate]:
    n_cells = y.shape[0] if n_cells is None else n_cells
    rows = torch.arange(y.shape[0], device=y.device) if rows is None else rows
    cells = pyro.plate("cells", n_cells, subsample=rows, dim=-2)
    genes = pyro.plate("genes", y.shape[1], subsample=torch.arange(y.shape[1], device=y.device), dim=-1)
    return cells, genes


def _sample_block(scalar: str, vector: str, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a jointly Normal (scalar, vector), the scalar first."""
    first = pyro.sample(scalar, Normal(loc[..., 0], tril[..., 0, 0]))
    standardised = (first - loc[..., 0]) / tril[..., 0, 0]
    conditional_loc = loc[..., 1:] + standardised[..., None] * tril[..., 1:, 0]
    rest = pyro.sample(vector, MultivariateNormal(conditional_loc, scale_tril=tril[..., 1:, 1:]))
    return first, rest


def _sample_flow(
    site: str, scalar: str, vector: str, loc: Tensor, tril: Tensor, flow: TransformModule | None
) -> tuple[Tensor, Tensor]:
    """Draw `loc + tril f(z)`, with z standard Normal, and take it apart."""
    base = Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
    shape = pyro.sample(site, TransformedDistribution(base, [flow]), infer={"is_auxiliary": True})
    row = loc + (tril @ shape[..., None])[..., 0]
    log_volume = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    first = pyro.sample(scalar, Delta(row[..., 0], log_density=-log_volume))
    rest = pyro.sample(vector, Delta(row[..., 1:], event_dim=1))
    return first, rest
