"""Unconstrained parameters of the Pyro engine, and the constrained tensors that the programs take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ...model import GuideParameters, PriorScales, Scales
from ..normal.state import NormalGlobals

if TYPE_CHECKING:
    from torch import Tensor

    from ..counts.state import CountGlobals

START_SCALE = 0.1


class SharedParameters(nn.Module):
    """Everything that cells share: q(mu), q(b, B), the covariances, noise and prior scales.

    As in the closed form, `T_j = basis diag(1 / (w_j eig + 1)) basis'`, so that both engines store the same fields.
    """

    def __init__(self, gene_loc: Tensor, mu: Tensor, sigma: Tensor, scales: PriorScales, family: str) -> None:
        super().__init__()
        size = gene_loc.shape[1]
        self.family, self._fixed = family, scales.fixed
        self.mu_loc = nn.Parameter(mu)
        self.log_mu_scale = nn.Parameter((START_SCALE * sigma.mean()).log())
        self.gene_loc = nn.Parameter(gene_loc)
        self.cell_root = nn.Parameter(gene_loc.new_zeros(size, size))
        self.gene_root = nn.Parameter(gene_loc.new_zeros(size, size))
        self.log_eig = nn.Parameter(gene_loc.new_zeros(size))
        self.log_sigma = self._scale("sigma", sigma)
        self.log_a, self.log_b = self._scale("a", scales.a.float()), self._scale("b", scales.b.float())
        self.log_A = nn.Parameter(scales.A.float().log(), requires_grad=False)
        self.log_B = self._scale("B", scales.B.float())
        self.n_genes = len(gene_loc)

    def _scale(self, name: str, start: Tensor) -> nn.Parameter:
        return nn.Parameter(start.clone().log(), requires_grad=name not in self._fixed)

    def _root(self, raw: Tensor) -> Tensor:
        """Lower triangle with a positive diagonal; a diagonal alone for mean field."""
        diagonal = torch.diag(START_SCALE * raw.diagonal().exp())
        return diagonal if self.family == "mean_field" else diagonal + raw.tril(-1)

    def sigma(self) -> Tensor:
        """Noise of every gene, (m,)."""
        return self.log_sigma.exp().expand(self.n_genes)

    def scales(self) -> Scales:
        """Scales of the program."""
        return Scales(self.log_a.exp(), self.log_A.exp(), self.log_b.exp(), self.log_B.exp(), self.log_sigma.exp())

    def gene_tril(self) -> Tensor:
        """Cholesky factors of T_j, (r+1, r+1) or (m, r+1, r+1)."""
        diagonal = 1 / (self.log_eig.exp() / self.log_sigma.exp().square()[..., None] + 1)
        root = self._root(self.gene_root) * diagonal[..., None, :].sqrt()
        # a lower triangle times a positive diagonal is a Cholesky factor already
        return root[0] if root.dim() == 3 and len(root) == 1 else root

    def guide(self, cell_loc: Tensor) -> GuideParameters:
        """Parameters of the guide for a batch of cells."""
        return GuideParameters(
            mu_loc=self.mu_loc,
            mu_scale=self.log_mu_scale.exp(),
            cell_loc=cell_loc,
            cell_tril=self._root(self.cell_root),
            gene_loc=self.gene_loc,
            gene_tril=self.gene_tril(),
        )

    def cell_cov(self) -> Tensor:
        """S, in float64."""
        root = _exact(self._root(self.cell_root))
        return root @ root.T

    def globals(self) -> NormalGlobals:
        """Globals as the closed-form engine holds them, in float64."""
        precision, eig = _exact(self.sigma()).square().reciprocal(), _exact(self.log_eig).exp()
        scales = self.scales()
        return NormalGlobals(
            mu=_exact(self.mu_loc),
            mu_var=_exact(self.log_mu_scale).exp().square(),
            gene_mean=_exact(self.gene_loc),
            gene_basis=_exact(self._root(self.gene_root)),
            gene_eig=eig,
            gene_diagonal=1 / (precision[:, None] * eig + 1),
            precision=precision,
            scales=PriorScales(
                _exact(scales.a), _exact(scales.A), _exact(scales.b), _exact(scales.B), fixed=self._fixed
            ),
        )


class LearnedScales(nn.Module):
    """Standard deviations of the priors and dispersions, by their logarithms."""

    def __init__(self, g: CountGlobals, *, learns_theta: bool) -> None:
        super().__init__()
        start = g.scales

        def log(name: str, value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.double().log(), requires_grad=name not in start.fixed | {"A"})

        self.a, self.A = log("a", start.a), log("A", start.A)
        self.b, self.B = log("b", start.b), log("B", start.B)
        log_theta = -g.dispersion.double().log() if learns_theta else torch.zeros_like(start.a)
        self.theta = nn.Parameter(log_theta, requires_grad=learns_theta)

    def forward(self) -> Scales:
        """Scales of the program."""
        return Scales(self.a.exp(), self.A.exp(), self.b.exp(), self.B.exp(), theta=self.theta.exp())

    def of_rows(self) -> tuple[Tensor, Tensor]:
        """Standard deviations of (a, A) and of (b, B)."""
        first, second = torch.cat([self.a[None], self.A]), torch.cat([self.b[None], self.B])
        return first.exp().detach(), second.exp().detach()

    def dispersion(self, n_genes: int) -> Tensor:
        """Dispersions 1 / theta (m,), zero where there is none."""
        return (-self.theta).exp().detach() if self.theta.dim() else self.theta.new_zeros(n_genes)


def _exact(tensor: Tensor) -> Tensor:
    """Values in float64, without a gradient."""
    return tensor.detach().double()
