"""What steps for counts add to the records of a fit.

Small matrices are float64; what has an axis of cells or genes is float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ..._settings import settings
from ...linalg.packed import congruent, diagonal, pack, packed_part, packed_size
from ...model.noise import level_parameters
from ...posterior.rates import GeneFeatures, evenly, n_looked_at
from ..state import PackedAverages, PackedGlobals, Problem, factor_columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from torch import Tensor

    from ...model.likelihoods import Likelihood
    from ...posterior.gauge import Move


@dataclass(frozen=True)
class CountProblem(Problem):
    """Sizes and choices that stay the same during a fit of counts."""

    likelihood: Likelihood = field(kw_only=True)


def holds_covariances(n_cells: int, k: int) -> bool:
    """Whether covariances of so many cells, of k latents each, are held; else they are computed when needed."""
    return n_cells * packed_size(k) * 4 <= settings.max_cov_bytes


@dataclass(frozen=True)
class Cells:
    """q(a, A) of some cells, with their log size factors; covariates stand between a and A, without variance."""

    mean: Tensor  # (cells, r+1)
    cov: Tensor  # (cells, p): packed S_i
    log_size: Tensor  # (cells,)

    def rows(self, index: Tensor) -> Cells:
        """Cells at some positions."""
        cov = self.cov[index] if self.keeps_cov else self.cov.expand(len(index), -1)
        return Cells(self.mean[index], cov, self.log_size[index])

    def part(self, cells: slice | Tensor) -> Cells:
        """Some cells, consecutive ones without a copy; with one covariance in place of all where there is no more."""
        return Cells(self.mean[cells], self.cov[cells] if self.keeps_cov else self.cov, self.log_size[cells])

    def with_own_cov(self) -> Cells:
        """Cells with a covariance for each of them."""
        return self if self.keeps_cov else replace(self, cov=self.cov.expand(len(self.mean), -1))

    @property
    def keeps_cov(self) -> bool:
        """Whether each cell's covariance is held, or one average in place of all."""
        return len(self.cov) == len(self.mean)

    def put(self, index: Tensor, new: Cells) -> Cells:
        """Cells with other q for some of them; means and covariances are written in place."""
        self.mean[index] = new.mean
        if self.keeps_cov:
            self.cov[index] = new.cov
            return self
        return replace(self, cov=new.cov.mean(0, keepdim=True))

    def in_float32(self) -> Cells:
        """Cells in the precision of steps."""
        return Cells(self.mean.float(), self.cov.float(), self.log_size.float())

    @classmethod
    def joined(cls, parts: Sequence[Cells]) -> Cells:
        """Cells of some blocks, with the average of the covariances of these where each has one."""
        mean, log_size = (torch.cat([getattr(some, name) for some in parts]) for name in ("mean", "log_size"))
        if all(some.keeps_cov for some in parts):
            return cls(mean, torch.cat([some.cov for some in parts]), log_size)
        shares = mean.new_tensor([len(some.mean) / len(mean) for some in parts])
        return cls(mean, (shares @ torch.cat([some.cov.mean(0, keepdim=True) for some in parts]))[None], log_size)

    def at_factors(self, kept: Tensor, n_known: int) -> Cells:
        """Cells with the factors at positions `kept` alone."""
        columns = factor_columns(1 + n_known, kept)
        return replace(self, mean=self.mean[:, columns], cov=self.cov[:, packed_part(columns)])

    def moved(self, move: Move, family: str) -> Cells:
        """Cells after a gauge move; mean field keeps the variances alone."""
        return replace(self, mean=move.cells(self.mean), cov=_in_family(congruent(move.cell_map, self.cov), family))


def near(mean: Tensor, cov: Tensor, cells: Cells) -> GeneFeatures:
    """Features of genes for a fraction of the work, nearly right for cells like these, of which some are looked at."""
    some = cells.rows(evenly(len(cells.mean), n_looked_at(mean.shape[1]), cells.mean.device))
    return GeneFeatures.of(mean, cov, (some.mean, some.cov))


@dataclass(frozen=True)
class CountStatistics(PackedAverages):
    """Averages where a count is worth a Normal z = eta + g / w, without the size factor, of precision w."""

    excess: Tensor  # (m,): mean of what each cell says of the dispersion, times what it knows
    square: Tensor  # (m,): mean w_ij^2
    levels: Tensor | None = None  # (K-1, 3): what each cell says of the thresholds between levels


@dataclass(frozen=True)
class CountGlobals(PackedGlobals):
    """Globals with the dispersions of the genes, or the thresholds between levels."""

    dispersion: Tensor  # (m,)
    levels: Tensor | None = None  # (K,): the lowest level, then the thresholds between levels; None for counts

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Parameters of the likelihood, one for each gene (m,) or one for all ()."""
        return (self.dispersion,) if self.levels is None else level_parameters(self.levels.to(self.dispersion))

    @property
    def noise_var(self) -> Tensor:
        """One nat of log rate, or the noise of the probit."""
        return torch.ones_like(self.mu)

    def at(self, genes: Tensor) -> Self:
        """Globals of some genes."""
        return replace(
            self, gene_mean=self.gene_mean[genes], gene_cov=self.gene_cov[genes], dispersion=self.dispersion[genes]
        )

    def put(self, genes: Tensor, mean: Tensor, cov: Tensor, dispersion: Tensor) -> Self:
        """Globals with other q and dispersions for some genes; written in place."""
        self.gene_mean[genes], self.gene_cov[genes], self.dispersion[genes] = mean, cov, dispersion
        return replace(self)  # without what was computed from the former ones

    def features(self, cells: Cells | None = None) -> GeneFeatures:
        """Features of the genes, exact or, for a fraction of the work, nearly right for cells like these."""
        if cells is None:
            return GeneFeatures.of(self.gene_mean, self.gene_cov)
        return near(self.gene_mean, self.gene_cov, cells)

    def copied(self) -> Self:
        """Globals whose q and dispersions may be written to."""
        own = {name: getattr(self, name).clone() for name in ("gene_mean", "gene_cov", "dispersion")}
        return replace(self, **own)

    def in_family(self, family: str) -> Self:
        """Globals without the covariances that mean field does not have."""
        return replace(self, gene_cov=_in_family(self.gene_cov, family))


@dataclass(frozen=True)
class Gauged:
    """All that a gauge move changes: q of genes and of cells, and the averages over cells."""

    globals: CountGlobals
    statistics: CountStatistics
    cells: Cells

    def moved(self, move: Move, family: str) -> Self:
        """Genes, averages and cells after a gauge move; mean field keeps the variances alone."""
        return replace(
            self,
            globals=self.globals.moved(move).in_family(family),
            statistics=self.statistics.moved(move),
            cells=self.cells.moved(move, family),
        )


def _in_family(cov: Tensor, family: str) -> Tensor:
    return pack(torch.diag_embed(diagonal(cov))) if family == "mean_field" else cov
