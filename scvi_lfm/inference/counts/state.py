"""What inference for counts passes from step to step: frozen records of tensors.

Small matrices are float64; what has an axis of cells or genes is float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...linalg.packed import congruent, diagonal, pack, unpack
from ...model import Gaussian

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import PriorScales
    from ...model.likelihoods import Likelihood
    from ...posterior.gauge import Move


@dataclass(frozen=True)
class Problem:
    """What stays the same during a fit."""

    n_cells: int
    n_genes: int
    family: str
    likelihood: Likelihood
    rotates: bool = True
    n_observed: int | None = None  # entries that are data; None: all

    @property
    def n_entries(self) -> int:
        """Number of entries that are data."""
        return self.n_cells * self.n_genes if self.n_observed is None else self.n_observed


@dataclass(frozen=True)
class Cells:
    """q(a, A) of some cells, with their log size factors; covariates stand between a and A, without variance."""

    mean: Tensor  # (cells, r+1)
    cov: Tensor  # (cells, p): packed S_i
    log_size: Tensor  # (cells,)

    def rows(self, index: Tensor) -> Cells:
        """Some of the cells."""
        cov = self.cov[index] if self.keeps_cov else self.cov.expand(len(index), -1)
        return Cells(self.mean[index], cov, self.log_size[index])

    @property
    def keeps_cov(self) -> bool:
        """Whether each cell's covariance is held, or one average in place of all."""
        return len(self.cov) == len(self.mean)

    def put(self, index: Tensor, new: Cells) -> Cells:
        """With other q for some of the cells; means and covariances are written in place."""
        self.mean[index] = new.mean
        if self.keeps_cov:
            self.cov[index] = new.cov
            return self
        return replace(self, cov=new.cov.mean(0, keepdim=True))

    def moved(self, move: Move, family: str) -> Cells:
        """The same q after a gauge move; mean field keeps the variances alone."""
        return replace(self, mean=move.cells(self.mean), cov=_in_family(congruent(move.cell_map, self.cov), family))


@dataclass(frozen=True)
class Statistics:
    """Averages over cells of all that the gene update needs, with x = (1, a, A).

    A count is worth a Normal value z = eta + g / w, without the size factor, of precision w.
    """

    xx: Tensor  # (r+2, r+2): mean E[x x']
    weighted: Tensor  # (m, packed): mean w_ij E[x x']
    response: Tensor  # (m, r+2): mean w_ij z_ij E[x]
    excess: Tensor  # (m,): mean of what each cell says of the dispersion, times what it knows
    square: Tensor  # (m,): mean w_ij^2

    def blend(self, new: Statistics, rate: float) -> Statistics:
        """Running average, `(1 - rate) old + rate new`, in place."""
        if rate == 1:
            return new
        for old, fresh in zip(self._tensors(), new._tensors(), strict=True):
            old.lerp_(fresh, rate)
        return self

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.xx, self.weighted, self.response, self.excess, self.square

    def plus(self, other: Statistics, share: float) -> Statistics:
        """These plus `share` of others, in place."""
        for total, part in zip(self._tensors(), other._tensors(), strict=True):
            total.add_(part, alpha=share)
        return self

    def put(self, genes: Tensor, new: Statistics) -> Statistics:
        """With those of some genes replaced, in place."""
        for old, fresh in zip(self._tensors()[1:], new._tensors()[1:], strict=True):
            old[genes] = fresh
        return self

    def scaled(self, share: float) -> Statistics:
        """All averages times `share`."""
        return Statistics(*(tensor * share for tensor in self._tensors()))

    def moved(self, move: Move) -> Statistics:
        """The same averages after a gauge move."""
        linear = move.cell_moments()
        return replace(
            self,
            xx=linear @ self.xx @ linear.T,
            weighted=congruent(linear, self.weighted),
            response=self.response @ linear.T.to(self.response.dtype),
        )


@dataclass(frozen=True)
class Globals:
    """mu, q(b, B), the dispersions and the prior scales: all that cells share."""

    mu: Tensor  # ()
    gene_mean: Tensor  # (m, r+1): (b, B)
    gene_cov: Tensor  # (m, p): packed T_j
    dispersion: Tensor  # (m,)
    scales: PriorScales

    @property
    def n_factors(self) -> int:
        """Number of factors."""
        return self.gene_mean.shape[1] - 1 - self.n_known

    @property
    def n_known(self) -> int:
        """Number of covariates."""
        return len(self.scales.beta)

    @property
    def noise_var(self) -> Tensor:
        """The scale against which prior variances are floored: one nat of log rate."""
        return torch.ones_like(self.mu)

    def at(self, genes: Tensor) -> Globals:
        """Those of some genes."""
        return replace(
            self, gene_mean=self.gene_mean[genes], gene_cov=self.gene_cov[genes], dispersion=self.dispersion[genes]
        )

    def put(self, genes: Tensor, mean: Tensor, cov: Tensor, dispersion: Tensor) -> Globals:
        """With other q and dispersions for some genes."""
        return replace(
            self,
            gene_mean=self.gene_mean.index_copy(0, genes, mean),
            gene_cov=self.gene_cov.index_copy(0, genes, cov),
            dispersion=self.dispersion.index_copy(0, genes, dispersion),
        )

    def second_moment(self) -> Tensor:
        """Sum over genes of E[z z'] with z = (1, b, B), (r+2, r+2)."""
        mean = self.gene_mean.double()
        z = torch.cat([torch.ones_like(mean[:, :1]), mean], dim=1)
        moment = z.T @ z
        moment[1:, 1:] += unpack(self.gene_cov.double().sum(0))
        return moment

    def gene_squares(self) -> Tensor:
        """Mean over genes of E[(b, B)^2], (r+1,)."""
        return (self.gene_mean.double().square() + diagonal(self.gene_cov).double()).mean(0)

    def moved(self, move: Move) -> Globals:
        """The same q after a gauge move; the prior stays."""
        return replace(
            self,
            mu=self.mu + move.mu_shift,
            gene_mean=move.genes(self.gene_mean),
            gene_cov=congruent(move.gene_map, self.gene_cov),
        )

    def in_family(self, family: str) -> Globals:
        """Without the covariances that mean field does not have."""
        return replace(self, gene_cov=_in_family(self.gene_cov, family))


def cell_prior(g: Globals) -> Gaussian:
    """The prior of (a, A)."""
    return Gaussian.centred(g.scales.cell_var)


def gene_prior(g: Globals) -> Gaussian:
    """The prior of (b, B)."""
    return Gaussian.centred(g.scales.gene_var)


def _in_family(cov: Tensor, family: str) -> Tensor:
    return pack(torch.diag_embed(diagonal(cov))) if family == "mean_field" else cov
