"""What the Normal's steps add to the records of a fit, all of it float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...linalg.moments import row_moment, without_columns
from ...linalg.rows import rows_times
from ..state import Averages, Globals

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from ...posterior.gauge import Move


@dataclass(frozen=True)
class NormalStatistics(Averages):
    """Averages over cells of all that the gene update needs, with x = (1, a, A).

    Noise may differ by cell elsewhere: omega_i = 1 / sigma_i^2 is 1 here. With p covariates zeta, here and below, A
    stands for (zeta, A) and B for (beta, B): r is then p + r.
    """

    xx: Tensor  # (r+2, r+2): mean E[x x']
    yx: Tensor  # (m, r+2): mean omega y E[x]
    yy: Tensor  # (m,): mean omega y^2

    def normalised(self, g: NormalGlobals) -> tuple[NormalGlobals, Self]:
        """Globals and averages in which the geometric mean of sigma_i is one."""
        return g, self

    def at_columns(self, columns: Tensor) -> Self:
        """Averages of some columns of x."""
        return replace(self, xx=self.xx[columns][:, columns], yx=self.yx[:, columns])

    def moved(self, move: Move) -> Self:
        """Averages after a gauge move."""
        linear = move.cell_moments()
        return replace(self, xx=linear @ self.xx @ linear.T, yx=rows_times(self.yx, linear.T))

    @property
    def noise_xx(self) -> Tensor:
        """Mean omega E[x x'], (r+2, r+2): what the likelihood sees of the cells."""
        return self.xx

    @property
    def mean_weight(self) -> Tensor | float:
        """Mean omega."""
        return 1.0

    @property
    def mean_log_weight(self) -> Tensor | float:
        """Mean log omega."""
        return 0.0

    @property
    def mean_square(self) -> Tensor:
        """Mean y^2 of all genes."""
        return self.yy.mean()

    @property
    def uu(self) -> Tensor:
        """Mean omega E[u u'] with u = (1, A), (r+1, r+1)."""
        return without_columns(without_columns(self.noise_xx, 1).T, 1)

    @property
    def au(self) -> Tensor:
        """Mean omega E[a u], (r+1,)."""
        return without_columns(self.noise_xx[1][None], 1)[0]

    def yu(self, genes: slice) -> Tensor:
        """Mean omega y E[u] of some genes, (genes, r+1)."""
        return without_columns(self.yx[genes], 1)


@dataclass(frozen=True)
class WeightedStatistics(NormalStatistics):
    """Averages of which all but `xx` have weights omega_i = 1 / sigma_i^2."""

    weighted: Tensor  # (r+2, r+2): mean omega E[x x']
    log_weight: Tensor  # (): mean log omega

    def normalised(self, g: NormalGlobals) -> tuple[NormalGlobals, Self]:
        level = self.log_weight.exp()
        factor = 1 / level
        statistics = replace(
            self,
            yx=factor * self.yx,
            yy=factor * self.yy,
            weighted=factor * self.weighted,
            log_weight=self.log_weight + factor.log(),
        )
        return replace(g, precision=g.precision * level), statistics

    def at_columns(self, columns: Tensor) -> Self:
        return replace(super().at_columns(columns), weighted=self.weighted[columns][:, columns])

    def moved(self, move: Move) -> Self:
        linear = move.cell_moments()
        return replace(super().moved(move), weighted=linear @ self.weighted @ linear.T)

    @property
    def noise_xx(self) -> Tensor:
        return self.weighted

    @property
    def mean_weight(self) -> Tensor:
        return self.weighted[0, 0]

    @property
    def mean_log_weight(self) -> Tensor:
        return self.log_weight


def is_constant(per_gene: Tensor) -> bool:
    """Whether all rows are one row expanded: what is the same for every gene need not be computed for each."""
    return per_gene.stride(0) == 0


def distinct(per_gene: Tensor) -> Tensor:
    """All rows, or the first alone if they are constant."""
    return per_gene[:1] if is_constant(per_gene) else per_gene


def weighted_gene_moment(mean: Tensor, basis: Tensor, diagonal: Tensor, weights: Tensor) -> Tensor:
    """Sum over genes of w_j E[xi xi'] with xi = (1, b, B) and covariances `basis diag(diagonal_j) basis'`."""
    # one weight for all genes need not be multiplied with each
    moment = row_moment(mean) * weights[0] if is_constant(weights) else row_moment(mean, weights)
    total = weights.sum() * diagonal[0] if is_constant(diagonal) else weights @ diagonal
    moment[1:, 1:] += (basis * total) @ basis.T
    return moment


@dataclass(frozen=True)
class NormalGlobals(Globals):
    """Globals with one basis for all genes, `T_j = basis diag(gene_diagonal_j) basis'`, and the noise."""

    mu_var: Tensor  # ()
    gene_basis: Tensor  # (r+1, r+1)
    gene_eig: Tensor  # (r+1,)
    gene_diagonal: Tensor  # (m, r+1)
    precision: Tensor  # (m,): w_j = 1 / sigma_j^2

    @property
    def noise_var(self) -> Tensor:
        return self.precision.mean().reciprocal()

    @property
    def total_cov(self) -> Tensor:
        first, n_genes = self.gene_diagonal[0], len(self.gene_diagonal)
        total = n_genes * first if is_constant(self.gene_diagonal) else self.gene_diagonal.sum(0)
        return (self.gene_basis * total) @ self.gene_basis.T

    def weighted_moment(self) -> Tensor:
        """Sum over genes of w_j E[xi xi'] with xi = (1, b, B), (r+2, r+2)."""
        return weighted_gene_moment(self.gene_mean, self.gene_basis, self.gene_diagonal, self.precision)

    def moved(self, move: Move) -> Self:
        return replace(super().moved(move), gene_basis=move.gene_map @ self.gene_basis)
