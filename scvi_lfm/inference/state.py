"""What inference passes from step to step: frozen records of tensors, the same for every likelihood.

Small matrices are float64. `Globals` and `Averages` are bases: each room of closed forms adds what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..data import column_sums
from ..linalg.moments import row_moment, without_columns
from ..linalg.packed import congruent, packed_part, unpack
from ..model import Gaussian
from ..model.priors import initial_scales, rotation_is_free

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from torch import Tensor

    from ..data import CellMatrix
    from ..model import PriorScales
    from ..posterior.gauge import Move
    from .options import FitOptions


@dataclass(frozen=True)
class Problem:
    """Sizes and choices that stay the same during a fit."""

    n_cells: int
    n_genes: int
    family: str
    noise: str = "shared"
    rotates: bool = True
    n_observed: int | None = None  # entries that are data; None: all

    @classmethod
    def of(cls, matrix: CellMatrix, options: FitOptions, **more: Any) -> Self:
        """Problem of fitting a matrix."""
        n_observed = None if matrix.observed is None else matrix.n_observed
        rotates = rotation_is_free(options.prior_scales)
        return cls(*matrix.shape, options.family, options.noise, rotates, n_observed, **more)

    @property
    def n_entries(self) -> int:
        """Number of entries that are data."""
        return self.n_cells * self.n_genes if self.n_observed is None else self.n_observed


@dataclass(frozen=True)
class Averages:
    """Averages over cells: a tensor a field, or None where a fit has no use for it."""

    def blend(self, new: Self, rate: float) -> Self:
        """Running average: `(1 - rate) old + rate new`."""
        return new if rate == 1 else self.joined(new, lambda mine, other: torch.lerp(mine, other, rate))

    def plus(self, other: Self) -> Self:
        """Sum of these averages and others."""
        return self.joined(other, torch.add)

    def add_(self, other: Self, share: float) -> None:
        """Add `share` of others in place."""
        self.joined(other, lambda mine, more: mine.add_(more, alpha=share))

    def scaled(self, share: float) -> Self:
        """All averages times `share`."""
        return self if share == 1 else self.joined(self, lambda mine, _: mine * share)

    def joined(self, other: Self, join: Callable[[Tensor, Tensor], Tensor]) -> Self:
        """Averages that a function makes of each and that of others."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return type(self)(*(None if mine is None else join(mine, more) for mine, more in pairs))


@dataclass(frozen=True)
class PackedAverages(Averages):
    """Averages with a matrix of x = (1, a, A) for each gene."""

    xx: Tensor  # (r+2, r+2): mean E[x x']
    weighted: Tensor  # (m, packed): mean w_ij E[x x']
    response: Tensor  # (m, r+2): mean w_ij z_ij E[x]

    @property
    def margins(self) -> tuple[Tensor, Tensor]:
        """Means of w_ij E[u] and of w_ij E[a u] with u = (1, A), (m, r+1) each."""
        row = torch.arange(1, len(self.xx), device=self.xx.device)
        row[0] = 0  # that of a
        first = row * (row + 1) // 2
        return self.weighted.index_select(1, first), self.weighted.index_select(1, first + 1)

    @property
    def uu_part(self) -> Tensor:
        """Positions of mean w_ij E[u u'] in `weighted`, (p,)."""
        return _without_activity(len(self.xx) - 1, self.xx.device)

    def right_side(self, mu: Tensor) -> Tensor:
        """The right sides of the genes' normal equations, (m, r+1), as averages over cells."""
        with_one, with_activity = self.margins
        return without_columns(self.response, 1) - mu.to(with_one.dtype) * with_one - with_activity

    def moved(self, move: Move) -> Self:
        """Averages after a gauge move."""
        linear = move.cell_moments()
        return replace(
            self,
            xx=linear @ self.xx @ linear.T,
            weighted=congruent(linear, self.weighted),
            response=self.response @ linear.T.to(self.response.dtype),
        )

    def at_columns(self, kept: Tensor) -> Self:
        """Averages of some columns of x."""
        return replace(
            self,
            xx=self.xx[kept][:, kept],
            weighted=self.weighted[:, packed_part(kept)],
            response=self.response[:, kept],
        )


@lru_cache(maxsize=32)
def _without_activity(k: int, device: torch.device) -> Tensor:
    """Positions of packed (1, A), k values, within packed (1, a, A)."""
    coordinate = torch.arange(k, device=device)
    return packed_part(coordinate + (coordinate > 0))


@dataclass(frozen=True)
class Globals(ABC):
    """q(mu) and q(b, B), and the prior scales; each room adds what its values need: all that cells share.

    With p covariates zeta, B stands for (beta, B) and A for (zeta, A): r is then p + r.
    """

    mu: Tensor  # ()
    gene_mean: Tensor  # (m, r+1): (b, B)
    scales: PriorScales

    @property
    @abstractmethod
    def noise_var(self) -> Tensor:
        """The noise variance against which prior variances are floored."""

    @property
    @abstractmethod
    def total_cov(self) -> Tensor:
        """Sum over genes of T_j, (r+1, r+1) in float64."""

    @property
    def n_factors(self) -> int:
        """Number of factors."""
        return self.gene_mean.shape[1] - 1 - self.n_known

    @property
    def n_known(self) -> int:
        """Number of covariates."""
        return len(self.scales.beta)

    @property
    def cell_prior(self) -> Gaussian:
        """The prior of (a, A)."""
        return Gaussian.centred(self.scales.cell_var)

    @property
    def gene_prior(self) -> Gaussian:
        """The prior of (b, B)."""
        return Gaussian.centred(self.scales.gene_var)

    def second_moment(self) -> Tensor:
        """Sum over genes of E[xi xi'] with xi = (1, b, B), (r+2, r+2)."""
        moment = row_moment(self.gene_mean.double())
        moment[1:, 1:] += self.total_cov
        return moment

    def gene_squares(self) -> Tensor:
        """Mean over genes of E[(b, B)^2], (r+1,)."""
        return self.gene_mean.double().square().mean(0) + self.total_cov.diagonal() / len(self.gene_mean)

    def moved(self, move: Move) -> Self:
        """Globals after a gauge move; the prior stays."""
        return replace(self, mu=self.mu + move.mu_shift, gene_mean=move.genes(self.gene_mean))

    def with_more_factors(self, n_factors: int, prior_scales: Mapping[str, object], spread: Tensor) -> Self:
        """Globals with factors that no gene has yet; scales that are not given start at `spread`."""
        scales = initial_scales(n_factors, prior_scales, spread)
        scales = replace(scales, a=self.scales.a, b=self.scales.b, beta=self.scales.beta)
        loadings = self.gene_mean.new_zeros(len(self.gene_mean), n_factors)
        return replace(self, gene_mean=torch.cat([self.gene_mean, loadings], dim=1), scales=scales)

    def at_factors(self, kept: Tensor) -> Self:
        """Globals with the factors at positions `kept` alone."""
        scales = replace(self.scales, A=self.scales.A[kept], B=self.scales.B[kept])
        return replace(self, gene_mean=self.gene_mean[:, factor_columns(1 + self.n_known, kept)], scales=scales)

    def with_scales_learned(self, cell_activity: Tensor) -> Self:
        """Globals with the prior scales at the ELBO's maximum, given mean E[a^2]."""
        return replace(self, scales=self.scales.learned_from(cell_activity, self.gene_squares(), self.noise_var))


@dataclass(frozen=True)
class PackedGlobals(Globals):
    """Genes with a covariance of their own each."""

    gene_cov: Tensor  # (m, p): packed T_j

    @cached_property
    def total_cov(self) -> Tensor:
        return unpack(column_sums(self.gene_cov))

    def moved(self, move: Move) -> Self:
        return replace(super().moved(move), gene_cov=congruent(move.gene_map, self.gene_cov))

    def at_factors(self, kept: Tensor) -> Self:
        part = packed_part(factor_columns(1 + self.n_known, kept))
        return replace(super().at_factors(kept), gene_cov=self.gene_cov[:, part])


def factor_columns(ahead: int, kept: Tensor) -> Tensor:
    """Columns of a row whose first `ahead` always stay, and whose factors stay at the positions `kept`."""
    return torch.cat([torch.arange(ahead, device=kept.device), kept + ahead])
