"""What steps from observed entries add to the records of a fit.

Covariances of rows, and sums of them, are in the precision of the data; all else is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ...linalg.packed import congruent
from ..state import PackedAverages, PackedGlobals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from torch import Tensor

    from ...posterior.gauge import Move
    from ..equations import Solved


@dataclass(frozen=True)
class Rows:
    """q of some rows."""

    mean: Tensor  # (rows, k), float64
    cov: Tensor  # (rows, p): packed, in the dtype of the information
    log_det: Tensor  # (): sum over rows of log |S_i|

    @classmethod
    def of(cls, solved: Solved) -> Rows:
        """Rows from the solution of their equations."""
        return cls(solved.mean, solved.cov, solved.log_det.sum())

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Rows of some blocks after others."""
        return cls(
            torch.cat([rows.mean for rows in parts]),
            torch.cat([rows.cov for rows in parts]),
            torch.stack([rows.log_det for rows in parts]).sum(),
        )

    def moved(self, move: Move) -> Rows:
        """Rows of cells after a gauge move."""
        log_det = 2 * len(self.mean) * torch.linalg.slogdet(move.cell_map).logabsdet
        return Rows(move.cells(self.mean), congruent(move.cell_map, self.cov), self.log_det + log_det)


@dataclass(frozen=True)
class ObservedStatistics(PackedAverages):
    """Averages with weights w_ij = o_ij, 1 where observed, else 0, and the values y_ij as responses z_ij."""

    yy: Tensor  # (m,): mean o_ij y_ij^2
    log_det: Tensor  # (): mean log |S_i|

    def moved(self, move: Move) -> Self:
        log_det = self.log_det + 2 * torch.linalg.slogdet(move.cell_map).logabsdet
        return replace(super().moved(move), log_det=log_det)

    @cached_property
    def margins(self) -> tuple[Tensor, Tensor]:
        """Means of o_ij E[u] and of o_ij E[a u] with u = (1, A), (m, r+1) each, in float64."""
        with_one, with_activity = super().margins
        return with_one.double(), with_activity.double()

    @property
    def mean_square(self) -> Tensor:
        """Mean y^2 of all observed values."""
        return self.yy.sum() / self.observed().sum()

    def observed(self) -> Tensor:
        """Share of the cells in which each gene was observed, (m,) in float64."""
        return self.weighted[:, 0].double()


@dataclass(frozen=True)
class ObservedGlobals(PackedGlobals):
    """Globals with the noise, and no covariates."""

    mu_var: Tensor  # ()
    gene_log_det: Tensor  # (): sum over genes of log |T_j|
    precision: Tensor  # (m,): w_j = 1 / sigma_j^2

    @property
    def noise_var(self) -> Tensor:
        return self.precision.mean().reciprocal()

    def moved(self, move: Move) -> Self:
        log_det = 2 * len(self.gene_mean) * torch.linalg.slogdet(move.gene_map).logabsdet
        return replace(super().moved(move), gene_log_det=self.gene_log_det + log_det)
