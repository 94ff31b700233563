r"""Most genes tell little of the cells: epochs see the variable ones, and the last step all of them.

.. math::

    \sum_i w_{ij} \phi_j \approx \frac{\phi_j \sum_i y_{ij}}{1 + \phi_j \lambda_j}, \qquad
    \phi_j = \frac{\sum_i (y_{ij} - s_i \lambda_j)^2 - y_{ij}}{\lambda_j^2 \sum_i s_i^2}, \qquad
    \lambda_j = \frac{\sum_i y_{ij}}{\sum_i s_i}

is what gene j tells: the part of the variance of its counts that is not the Poisson's, added up over cells. Other genes
stay at their margins meanwhile. Once the variable ones have settled they are fitted to groups of cells, and then all
genes and cells move together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...data import CellMatrix
from ...linalg.packed import diagonal, pack
from .gene_step import solve_genes
from .groups import Groups
from .last_step import settle, statistics_of_all
from .objective import elbo_of_entries, elbo_per_entry
from .start import LOADING_VAR, TINY

if TYPE_CHECKING:
    import scipy.sparse as sp
    from torch import Tensor

    from ..minibatches import Minibatches
    from ..ranks import RankCurve
    from .objective import EntrySample
    from .state import Cells, CountGlobals, CountProblem, CountStatistics

# variable genes hold this share of what all of them tell, and are at least so many
SHARE, LEAST = 0.98, 2000
# the factors of fewer cells are those of the variable genes too much: with 30 the bound would end below rank0
LEAST_CELLS = 1000
# where more of the genes are variable, it is not worth while to tell them apart
WORTHWHILE = 0.9
# of genes that vary less than the Poisson, as binary values do, those tell most that are seen most; odd ones tell less
LEAST_DISPERSION, MOST_DISPERSION = 1e-3, 3.0
ROWS = 256


def variable_genes(matrix: CellMatrix, log_size: np.ndarray) -> np.ndarray | None:
    """Positions of the genes that tell most, in some cells in memory, (cells,) log size factors.

    None where nearly all are needed, or cells are few.
    """
    if matrix.shape[0] < LEAST_CELLS:
        return None
    told = _told(matrix.stored(), np.exp(log_size))
    order = np.argsort(-told, kind="stable")
    enough = max(int(np.searchsorted(np.cumsum(told[order]), SHARE * told.sum())) + 1, LEAST)
    return None if enough > WORTHWHILE * len(told) else np.sort(order[:enough])


def _told(y: sp.csr_array | np.ndarray, size: np.ndarray) -> np.ndarray:
    """What each gene tells of the cells with counts y (cells, m) and size factors (cells,)."""
    total, squares, by_size = np.zeros((3, y.shape[1]))
    for start in range(0, len(size), ROWS):  # dense counts are not copied whole
        rows = slice(start, start + ROWS)
        some = y[rows].astype(np.float64)
        total += some.sum(0)
        squares += (some * some).sum(0)
        by_size += size[rows] @ some
    rate, square = total / size.sum(), np.square(size).sum()
    beyond = squares - 2 * rate * by_size + np.square(rate) * square - total
    dispersion = beyond / np.maximum(np.square(rate) * square, TINY)
    dispersion = dispersion.clip(LEAST_DISPERSION, MOST_DISPERSION)
    return total * dispersion / (1 + dispersion * rate)


@dataclass(frozen=True)
class Seen:
    """The genes that epochs see, all of a fit or the variable ones."""

    problem: CountProblem
    matrix: CellMatrix
    batches: Minibatches
    sample: EntrySample  # in which the ELBO is measured

    def at(self, genes: np.ndarray) -> Seen:
        """Genes at some positions among these."""
        matrix, n_genes = self.matrix.at_genes(genes), self.problem.n_genes
        sample = self.sample.at_genes(torch.from_numpy(genes).to(self.sample.gene.device), n_genes)
        return Seen(replace(self.problem, n_genes=len(genes)), matrix, self.batches.of(matrix), sample)

    def elbo(self, g: CountGlobals, cells: Cells, seed: int) -> float:
        """The ELBO per entry of these genes, measured in some cells."""
        return elbo_per_entry(self.problem, g, cells, (g.cell_prior, g.gene_prior), self.sample, seed)

    def elbo_of_entries(self, g: CountGlobals, cells: Cells, seed: int, width: int) -> tuple[float, Tensor]:
        """ELBO per entry of these genes, and E log p of each entry of the sample, with random numbers of a width."""
        return elbo_of_entries(self.problem, g, cells, (g.cell_prior, g.gene_prior), self.sample, seed, width)


@dataclass(frozen=True)
class LeftOut:
    """The genes that epochs do not see, at their margins."""

    genes: Tensor  # positions among all
    others: Tensor  # positions of the variable ones
    margins: CountGlobals  # q(b, beta)
    elbo: float = 0.0  # what they add to the ELBO per entry of all

    @classmethod
    def of(cls, variable: np.ndarray, margins: CountGlobals) -> LeftOut:
        """All genes but the variable ones, given the margins of all."""
        others = torch.from_numpy(variable).to(margins.mu.device)
        is_left = torch.ones(len(margins.gene_mean), dtype=torch.bool, device=others.device).index_fill(0, others, 0)
        genes = torch.nonzero(is_left).flatten()
        return cls(genes, others, margins.at(genes))

    def of_all(self, elbo: float) -> float:
        """The ELBO per entry of all genes, given that of the variable ones."""
        return elbo * self.share + self.elbo

    @property
    def share(self) -> float:
        """Share of the variable genes among all."""
        return len(self.others) / (len(self.others) + len(self.genes))

    def curve_of_all(self, curve: RankCurve) -> RankCurve:
        """Curve of all genes, given that of the variable ones."""
        errors = curve.gain_error and [error * self.share for error in curve.gain_error]
        return replace(curve, elbo=list(map(self.of_all, curve.elbo)), gain_error=errors)

    def joined(
        self, problem: CountProblem, g: CountGlobals, cells: Cells, statistics: CountStatistics, matrix: CellMatrix
    ) -> CountGlobals:
        """All genes: the variable ones in `g` as they are, the others fitted to groups of the cells of `matrix`."""
        left = self._beside(g)
        groups = Groups.of(cells)
        likelihood = problem.likelihood.summed or problem.likelihood
        few = replace(problem, n_genes=len(self.genes), n_cells=groups.count, likelihood=likelihood)
        # counts of several cells vary less
        some = replace(left, dispersion=left.dispersion * (groups.count / problem.n_cells))
        matrix = CellMatrix.of(groups.sums(matrix.at_genes(self.genes.cpu().numpy())))
        solved = solve_genes(few, some, statistics_of_all(few, some, groups.cells, matrix))
        some = replace(some, gene_mean=solved.mean, gene_cov=solved.cov)
        some = settle(few, some, groups.cells, solved.missing, matrix)
        b = g.gene_mean[:, :1] + (g.mu - left.mu).to(g.gene_mean)
        everything = replace(
            left,
            gene_mean=self._together(torch.cat([b, g.gene_mean[:, 1:]], dim=1), some.gene_mean),
            gene_cov=self._together(g.gene_cov, some.gene_cov),
            dispersion=self._together(g.dispersion, left.dispersion),
        )
        return everything.with_scales_learned(statistics.xx[1, 1])

    def _beside(self, g: CountGlobals) -> CountGlobals:
        """Genes that were left out, without factors; mu and the scale of b are those of all."""
        margins, k = self.margins, g.gene_mean.shape[1]
        levels = margins.gene_mean[:, 0].double() + margins.mu
        everyone = torch.cat([g.gene_mean[:, 0].double() + g.mu, levels])
        mu, scales = everyone.mean(), g.scales
        if "b" not in scales.fixed:
            scales = replace(scales, b=everyone.std(correction=0))
        mean = margins.gene_mean.new_zeros(len(levels), k)
        mean[:, : margins.gene_mean.shape[1]] = margins.gene_mean
        mean[:, 0] = (levels - mu).to(mean)
        var = torch.full_like(mean, LOADING_VAR)
        var[:, : margins.gene_mean.shape[1]] = diagonal(margins.gene_cov)
        cov = pack(torch.diag_embed(var))
        return replace(g, mu=mu, gene_mean=mean, gene_cov=cov, dispersion=margins.dispersion, scales=scales)

    def _together(self, variable: Tensor, left: Tensor) -> Tensor:
        """Rows of all genes, in their order."""
        rows = left.new_empty((len(self.genes) + len(self.others), *left.shape[1:]))
        return rows.index_copy(0, self.others, variable).index_copy(0, self.genes, left)
