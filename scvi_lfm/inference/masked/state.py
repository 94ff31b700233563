"""What inference with unobserved entries passes from step to step: frozen records of tensors.

Covariances of rows, and sums of them, are in the precision of the data; all else is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ...data import column_sums
from ...linalg.packed import congruent, diagonal, unpack
from ..counts.gene_step import margins

if TYPE_CHECKING:
    from torch import Tensor

    from ...model import PriorScales
    from ...posterior.gauge import Move


@dataclass(frozen=True)
class Problem:
    """What stays the same during a fit."""

    n_cells: int
    n_genes: int
    n_observed: int
    family: str
    noise: str
    rotates: bool = True


@dataclass(frozen=True)
class Statistics:
    """Averages over cells of all that the gene update needs, with x = (1, a, A) and o_ij = 1 where observed, else 0."""

    xx: Tensor  # (r+2, r+2): mean E[x x']
    weighted: Tensor  # (m, packed): mean o_ij E[x x']
    yx: Tensor  # (m, r+2): mean o_ij y_ij E[x]
    yy: Tensor  # (m,): mean o_ij y_ij^2
    log_det: Tensor  # (): mean log |S_i|

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.xx, self.weighted, self.yx, self.yy, self.log_det

    def blend(self, new: Statistics, rate: float) -> Statistics:
        """Running average: `(1 - rate) old + rate new`."""
        return Statistics(
            *(torch.lerp(old, fresh, rate) for old, fresh in zip(self._tensors(), new._tensors(), strict=True))
        )

    def plus(self, other: Statistics) -> Statistics:
        """Sum of two shares."""
        return Statistics(*(left + right for left, right in zip(self._tensors(), other._tensors(), strict=True)))

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
            yx=self.yx @ linear.T,
            log_det=self.log_det + 2 * torch.linalg.slogdet(move.cell_map).logabsdet,
        )

    @cached_property
    def margins(self) -> tuple[Tensor, Tensor]:
        """Means of o_ij E[u] and o_ij E[a u] with u = (1, A), (m, r+1) each in float64."""
        with_one, with_activity = margins(self.weighted)
        return with_one.double(), with_activity.double()

    @property
    def mean_square(self) -> Tensor:
        """Mean y^2 of all observed values."""
        return self.yy.sum() / self.observed().sum()

    def observed(self) -> Tensor:
        """Share of the cells in which each gene was observed, (m,) in float64."""
        return self.weighted[:, 0].double()


@dataclass(frozen=True)
class Globals:
    """q(mu) and q(b, B), the noise and the prior scales: all that cells share."""

    mu: Tensor  # ()
    mu_var: Tensor  # ()
    gene_mean: Tensor  # (m, r+1): (b, B)
    gene_cov: Tensor  # (m, p): packed T_j
    gene_log_det: Tensor  # (): sum over genes of log |T_j|
    precision: Tensor  # (m,): w_j = 1 / sigma_j^2
    scales: PriorScales

    @property
    def n_factors(self) -> int:
        """Number of factors."""
        return self.gene_mean.shape[1] - 1

    @property
    def n_known(self) -> int:
        """Number of covariates: none."""
        return 0

    @property
    def noise_var(self) -> Tensor:
        """The noise variance against which prior variances are floored."""
        return self.precision.mean().reciprocal()

    @cached_property
    def _total_cov(self) -> Tensor:
        return column_sums(self.gene_cov)

    def second_moment(self) -> Tensor:
        """Sum over genes of E[xi xi'] with xi = (1, b, B), (r+2, r+2)."""
        z = torch.cat([torch.ones_like(self.gene_mean[:, :1]), self.gene_mean], dim=1)
        moment = z.T @ z
        moment[1:, 1:] += unpack(self._total_cov)
        return moment

    def gene_squares(self) -> Tensor:
        """Mean over genes of E[(b, B)^2], (r+1,)."""
        return self.gene_mean.square().mean(0) + diagonal(self._total_cov) / len(self.gene_cov)

    def moved(self, move: Move) -> Globals:
        """The same q after a gauge move; the prior stays."""
        return replace(
            self,
            mu=self.mu + move.mu_shift,
            gene_mean=move.genes(self.gene_mean),
            gene_cov=congruent(move.gene_map, self.gene_cov),
            gene_log_det=self.gene_log_det + 2 * len(self.gene_mean) * torch.linalg.slogdet(move.gene_map).logabsdet,
        )
