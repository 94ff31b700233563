"""What a likelihood needs besides eta, by gene and by cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .likelihoods import normal, student_t

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class NormalNoise:
    """Noise of the Normal likelihood, or the Student t: what it needs besides eta."""

    sigma: Tensor  # (m,): noise of the fit
    predictive: Tensor  # (m,): noise for predicting and scoring, which is not that of the fit
    cell: Tensor | None = None  # (n,): sigma_i, by which both are multiplied; None where it is 1 for all
    df: float | None = None  # degrees of freedom of the Student t, whose scale sigma then is; None: the Normal

    def at_genes(self, rows: Tensor) -> NormalNoise:
        """Noise of some genes."""
        return replace(self, sigma=self.sigma[rows], predictive=self.predictive[rows])

    def at_cells(self, rows: Tensor | slice) -> NormalNoise:
        """Noise of some cells."""
        return self if self.cell is None else replace(self, cell=self.cell[rows])

    @property
    def of_genes(self) -> Tensor:
        """Noise for predicting, (m,)."""
        return self.predictive

    @property
    def likelihood(self) -> str:
        """Name of the likelihood."""
        return (normal.NORMAL if self.df is None else student_t.STUDENT_T).name

    def of_pairs(self, cells: Tensor, genes: Tensor) -> tuple[Tensor, ...]:
        """The likelihood's parameters for predicting cell `cells[k]` with gene `genes[k]`, (pairs,) each."""
        sigma = self.predictive[genes]
        return self._parameters(sigma if self.cell is None else sigma * self.cell[cells])

    def of_cells(self, cells: slice | Tensor | None, dtype: torch.dtype, *, of_fit: bool = False) -> tuple[Tensor, ...]:
        """The parameters for predicting, or those of the fit, in cells with all genes, (m,) or (cells, m) each.

        With None for cells, they are those of a cell with sigma_i = 1.
        """
        sigma = (self.sigma if of_fit else self.predictive).to(dtype)
        if self.cell is not None and cells is not None:
            sigma = sigma * self.cell[cells, None].to(dtype)
        return self._parameters(sigma)

    def _parameters(self, sigma: Tensor) -> tuple[Tensor, ...]:
        return (sigma.square(),) if self.df is None else (sigma, sigma.new_tensor(self.df))

    def offset(self, cells: slice | Tensor) -> Tensor:
        """Known part of the eta of some cells: zero, (1,)."""
        return self.predictive.new_zeros(1)

    def rounded(self) -> NormalNoise:
        """Noise with values as float32 storage holds them; a shared sigma is stored in float64."""
        varies = (self.sigma != self.sigma[0]).any()
        return replace(
            self,
            sigma=self.sigma.float().double() if varies else self.sigma,
            predictive=self.predictive.float().double(),
            cell=None if self.cell is None else self.cell.float().double(),
        )


@dataclass(frozen=True)
class CountNoise:
    """Noise of a likelihood of counts, or of levels: what it needs besides eta."""

    likelihood: str  # a name of `model.likelihoods.LIKELIHOODS`
    dispersion: Tensor  # (m,): 1 / theta_j, zero where there is none
    log_size: Tensor  # (n,): log size factors, zero for levels
    levels: Tensor | None = None  # (K,): the lowest level, then the thresholds between levels; None for counts

    def of_pairs(self, cells: Tensor, genes: Tensor) -> tuple[Tensor, ...]:
        """The likelihood's parameter in cell `cells[k]` with gene `genes[k]`, (pairs,)."""
        return self._parameters(self.dispersion[genes])

    def of_cells(self, cells: slice | Tensor | None, dtype: torch.dtype, *, of_fit: bool = False) -> tuple[Tensor, ...]:
        """The parameter in cells with all genes, (m,): the same in every cell, and for predicting."""
        return self._parameters(self.dispersion.to(dtype))

    @property
    def of_genes(self) -> Tensor:
        """Dispersions, (m,)."""
        return self.dispersion

    def _parameters(self, dispersion: Tensor) -> tuple[Tensor, ...]:
        return (dispersion,) if self.levels is None else level_parameters(self.levels.to(dispersion.dtype))

    def offset(self, cells: slice | Tensor) -> Tensor:
        """Known part of the eta of some cells: their log size factors, (cells,)."""
        return self.log_size[cells]

    def at_genes(self, rows: Tensor) -> CountNoise:
        """Noise of some genes."""
        return replace(self, dispersion=self.dispersion[rows])

    def at_cells(self, rows: Tensor | slice) -> CountNoise:
        """Noise of some cells."""
        return replace(self, log_size=self.log_size[rows])

    def rounded(self) -> CountNoise:
        """Noise with values as float32 storage holds them."""
        return replace(self, dispersion=self.dispersion.float().double(), log_size=self.log_size.float().double())


def level_parameters(levels: Tensor) -> tuple[Tensor, ...]:
    """Parameters of the ordinal likelihood in a fit, from the lowest level and the thresholds (K,)."""
    return levels.new_ones(()), *levels.unbind()
