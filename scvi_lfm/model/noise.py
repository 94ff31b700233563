"""What a likelihood needs besides eta, by gene and by cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NormalNoise:
    """What the Normal likelihood, or the Student t, needs besides eta."""

    sigma: Tensor  # (m,): noise of the fit
    predictive: Tensor  # (m,): noise for predicting and scoring, which is not that of the fit
    cell: Tensor | None = None  # (n,): sigma_i, by which both are multiplied; None where it is 1 for all
    df: float | None = None  # degrees of freedom of the Student t, whose scale sigma then is; None: the Normal

    def at_genes(self, rows: Tensor) -> NormalNoise:
        """That of some genes."""
        return replace(self, sigma=self.sigma[rows], predictive=self.predictive[rows])

    def of_pairs(self, cells: Tensor, genes: Tensor) -> Tensor:
        """Standard deviation for predicting cell `cells[k]` with gene `genes[k]`, (pairs,)."""
        return self.predictive[genes] if self.cell is None else self.predictive[genes] * self.cell[cells]

    def for_cells(self, per_gene: Tensor, cells: slice) -> Tensor:
        """Variances (m,) of genes in some cells, (m,) or (cells, m)."""
        return per_gene if self.cell is None else per_gene * self.cell[cells, None].to(per_gene.dtype).square()

    def rounded(self) -> NormalNoise:
        """With values as float32 storage holds them; a shared sigma is stored in float64."""
        varies = (self.sigma != self.sigma[0]).any()
        return replace(
            self,
            sigma=self.sigma.float().double() if varies else self.sigma,
            predictive=self.predictive.float().double(),
            cell=None if self.cell is None else self.cell.float().double(),
        )


@dataclass(frozen=True)
class CountNoise:
    """What a count likelihood needs besides eta."""

    likelihood: str  # a name of `model.likelihoods.COUNTS`
    dispersion: Tensor  # (m,): 1 / theta_j, zero where there is none
    log_size: Tensor  # (n,): log size factors

    def at_genes(self, rows: Tensor) -> CountNoise:
        """That of some genes."""
        return replace(self, dispersion=self.dispersion[rows])

    def rounded(self) -> CountNoise:
        """With values as float32 storage holds them."""
        return replace(self, dispersion=self.dispersion.float().double(), log_size=self.log_size.float().double())
