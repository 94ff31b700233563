"""What the natural-gradient engine passes from step to step: frozen records of float64 tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..model import PriorScales
    from ..posterior.gauge import Move


@dataclass(frozen=True)
class CellStatistics:
    """Averages over cells of all that the gene update needs, with x = (1, a, A).

    Where noise differs by cell, every average but `xx` has weights omega_i = 1 / sigma_i^2. With p covariates zeta,
    here and below, A stands for (zeta, A) and B for (beta, B): r is then p + r.
    """

    xx: Tensor  # (r+2, r+2): mean E[x x']
    yx: Tensor  # (m, r+2): mean y E[x]
    yy: Tensor  # (m,): mean y^2
    weighted: Tensor | None = None  # (r+2, r+2): mean omega E[x x'], None where all omega are 1
    log_weight: Tensor | None = None  # (): mean log omega

    def blend(self, new: CellStatistics, rate: float) -> CellStatistics:
        """Running average: `(1 - rate) old + rate new`."""
        if rate == 1:
            return new
        return self._with(new, lambda mine, other: torch.lerp(mine, other, rate))

    def scaled(self, share: float) -> CellStatistics:
        """All averages times `share`."""
        return self._with(self, lambda mine, _: mine * share)

    def plus(self, other: CellStatistics) -> CellStatistics:
        """Sum of two shares."""
        return self._with(other, torch.add)

    def _with(self, other: CellStatistics, join: Callable[[Tensor, Tensor], Tensor]) -> CellStatistics:
        joined = CellStatistics(join(self.xx, other.xx), join(self.yx, other.yx), join(self.yy, other.yy))
        if self.weighted is None or self.log_weight is None or other.weighted is None or other.log_weight is None:
            return joined
        weighted, log_weight = join(self.weighted, other.weighted), join(self.log_weight, other.log_weight)
        return replace(joined, weighted=weighted, log_weight=log_weight)

    def rescaled(self, factor: Tensor) -> CellStatistics:
        """The same averages with every omega multiplied by `factor`."""
        if self.weighted is None or self.log_weight is None:
            return self
        return CellStatistics(
            self.xx, factor * self.yx, factor * self.yy, factor * self.weighted, self.log_weight + factor.log()
        )

    def at_factors(self, columns: Tensor) -> CellStatistics:
        """Those of some columns of x."""
        weighted = None if self.weighted is None else self.weighted[columns][:, columns]
        return replace(self, xx=self.xx[columns][:, columns], yx=self.yx[:, columns], weighted=weighted)

    def moved(self, move: Move) -> CellStatistics:
        """The same averages after a gauge move."""
        linear = move.cell_moments()
        weighted = None if self.weighted is None else linear @ self.weighted @ linear.T
        return replace(self, xx=linear @ self.xx @ linear.T, yx=self.yx @ linear.T, weighted=weighted)

    @property
    def noise_xx(self) -> Tensor:
        """Mean omega E[x x'], (r+2, r+2): what the likelihood sees of the cells."""
        return self.xx if self.weighted is None else self.weighted

    @property
    def mean_square(self) -> Tensor:
        """Mean y^2 of all genes."""
        return self.yy.mean()

    @property
    def mean_weight(self) -> Tensor | float:
        """Mean omega."""
        return 1.0 if self.weighted is None else self.weighted[0, 0]

    @property
    def uu(self) -> Tensor:
        """Mean omega E[u u'] with u = (1, A), (r+1, r+1)."""
        return _without_activity(_without_activity(self.noise_xx).T)

    @property
    def au(self) -> Tensor:
        """Mean omega E[a u], (r+1,)."""
        return _without_activity(self.noise_xx[1][None])[0]

    @cached_property
    def yu(self) -> Tensor:
        """Mean omega y E[u], (m, r+1)."""
        return _without_activity(self.yx)


def _without_activity(columns: Tensor) -> Tensor:
    return torch.cat([columns[:, :1], columns[:, 2:]], dim=1)


def is_constant(per_gene: Tensor) -> bool:
    """Whether all rows are one row expanded: what is the same for every gene need not be computed for each."""
    return per_gene.stride(0) == 0


def weighted_gene_moment(mean: Tensor, basis: Tensor, diagonal: Tensor, weights: Tensor) -> Tensor:
    """Sum over genes of w_j E[xi xi'] with xi = (1, b, B) and covariances `basis diag(diagonal_j) basis'`."""
    z = torch.cat([torch.ones_like(mean[:, :1]), mean], dim=1)
    moment = z.T @ (weights[:, None] * z)
    total = weights.sum() * diagonal[0] if is_constant(diagonal) else weights @ diagonal
    moment[1:, 1:] += (basis * total) @ basis.T
    return moment


@dataclass(frozen=True)
class Globals:
    """q(mu) and q(b, B), the noise and the prior scales: all that cells share."""

    mu: Tensor  # ()
    mu_var: Tensor  # ()
    gene_mean: Tensor  # (m, r+1): (b, B)
    gene_basis: Tensor  # (r+1, r+1)
    gene_eig: Tensor  # (r+1,)
    gene_diagonal: Tensor  # (m, r+1): T_j = basis diag(.) basis'
    precision: Tensor  # (m,): w_j = 1 / sigma_j^2
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
        """The noise variance against which prior variances are floored."""
        return self.precision.mean().reciprocal()

    def second_moment(self) -> Tensor:
        """Sum over genes of E[xi xi'] with xi = (1, b, B), (r+2, r+2)."""
        return self.weighted_moment(torch.ones_like(self.precision))

    def weighted_moment(self, weights: Tensor) -> Tensor:
        """Sum over genes of w_j E[xi xi'] with xi = (1, b, B), (r+2, r+2)."""
        return weighted_gene_moment(self.gene_mean, self.gene_basis, self.gene_diagonal, weights)

    def moved(self, move: Move) -> Globals:
        """The same q after a gauge move; the prior stays."""
        return replace(
            self,
            mu=self.mu + move.mu_shift,
            gene_mean=move.genes(self.gene_mean),
            gene_basis=move.gene_map @ self.gene_basis,
        )
