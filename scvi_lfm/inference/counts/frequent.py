"""Most genes are rare and tell little of the cells: epochs see the frequent ones, and the last step all of them.

Rare genes stay at their margins meanwhile. Once the others have settled they are fitted to groups of cells, and then
all genes and cells move together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...data import CellMatrix
from ...linalg.packed import diagonal, pack
from .dispersion import DispersionPrior
from .gene_step import solve_genes
from .groups import Groups
from .last_step import settle, statistics_of_all
from .objective import elbo_of_entries, elbo_per_entry
from .start import LOADING_VAR

if TYPE_CHECKING:
    from torch import Tensor

    from ..minibatches import Minibatches
    from ..ranks import RankCurve
    from .objective import EntrySample
    from .state import Cells, CountGlobals, CountProblem, CountStatistics

# frequent genes hold this share of the entries that are not zero, and are at least so many
SHARE, LEAST = 0.98, 2000
# the factors of fewer cells are those of the frequent genes too much: with 30 the bound would end below rank0
LEAST_CELLS = 1000
# where more of the genes are frequent, it is not worth while to tell them apart
WORTHWHILE = 0.9


def frequent_genes(matrix: CellMatrix) -> np.ndarray | None:
    """Positions of the genes that are seen most, in some cells in memory; None where nearly all are, or cells few."""
    if matrix.shape[0] < LEAST_CELLS:
        return None
    seen = np.asarray((matrix.stored() != 0).sum(0)).ravel()
    order = np.argsort(-seen, kind="stable")
    enough = max(int(np.searchsorted(np.cumsum(seen[order]), SHARE * seen.sum())) + 1, LEAST)
    return None if enough > WORTHWHILE * len(seen) else np.sort(order[:enough])


@dataclass(frozen=True)
class Seen:
    """The genes that epochs see, all of a fit or the frequent ones."""

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
class Rare:
    """The genes that epochs do not see, at their margins."""

    genes: Tensor  # positions among all
    others: Tensor  # positions of the frequent ones
    margins: CountGlobals  # q(b, beta)
    elbo: float = 0.0  # what they add to the ELBO per entry of all

    @classmethod
    def of(cls, frequent: np.ndarray, margins: CountGlobals) -> Rare:
        """Rare genes, all but the frequent ones, given the margins of all."""
        others = torch.from_numpy(frequent).to(margins.mu.device)
        is_rare = torch.ones(len(margins.gene_mean), dtype=torch.bool, device=others.device).index_fill(0, others, 0)
        genes = torch.nonzero(is_rare).flatten()
        return cls(genes, others, margins.at(genes))

    def of_all(self, elbo: float) -> float:
        """The ELBO per entry of all genes, given that of the frequent ones."""
        return elbo * self.share + self.elbo

    @property
    def share(self) -> float:
        """Share of the frequent genes among all."""
        return len(self.others) / (len(self.others) + len(self.genes))

    def curve_of_all(self, curve: RankCurve) -> RankCurve:
        """Curve of all genes, given that of the frequent ones."""
        errors = curve.gain_error and [error * self.share for error in curve.gain_error]
        return replace(curve, elbo=list(map(self.of_all, curve.elbo)), gain_error=errors)

    def joined(
        self, problem: CountProblem, g: CountGlobals, cells: Cells, statistics: CountStatistics, matrix: CellMatrix
    ) -> CountGlobals:
        """All genes: the frequent ones in `g` as they are, the rare ones fitted to groups of the cells of `matrix`."""
        rare = self._beside(problem, g, statistics)
        groups = Groups.of(cells)
        likelihood = problem.likelihood.summed or problem.likelihood
        few = replace(problem, n_genes=len(self.genes), n_cells=groups.count, likelihood=likelihood)
        # counts of several cells vary less
        some = replace(rare, dispersion=rare.dispersion * (groups.count / problem.n_cells))
        matrix = CellMatrix.of(groups.sums(matrix.at_genes(self.genes.cpu().numpy())))
        solved = solve_genes(few, some, statistics_of_all(few, some, groups.cells, matrix))
        some = replace(some, gene_mean=solved.mean, gene_cov=solved.cov)
        some = settle(few, some, groups.cells, solved.missing, matrix)
        b = g.gene_mean[:, :1] + (g.mu - rare.mu).to(g.gene_mean)
        everything = replace(
            rare,
            gene_mean=self._together(torch.cat([b, g.gene_mean[:, 1:]], dim=1), some.gene_mean),
            gene_cov=self._together(g.gene_cov, some.gene_cov),
            dispersion=self._together(g.dispersion, rare.dispersion),
        )
        return everything.with_scales_learned(statistics.xx[1, 1])

    def _beside(self, problem: CountProblem, g: CountGlobals, statistics: CountStatistics) -> CountGlobals:
        """The rare genes without factors; mu, the scale of b and the dispersion are those of all genes."""
        margins, k = self.margins, g.gene_mean.shape[1]
        levels = margins.gene_mean[:, 0].double() + margins.mu
        everyone = torch.cat([g.gene_mean[:, 0].double() + g.mu, levels])
        mu, scales, dispersion = everyone.mean(), g.scales, margins.dispersion
        if "b" not in scales.fixed:
            scales = replace(scales, b=everyone.std(correction=0))
        if problem.likelihood.learns_dispersion:
            prior = DispersionPrior.learned(statistics, problem.n_cells)
            dispersion = prior.centre.exp().to(dispersion).expand(len(levels))
        mean = margins.gene_mean.new_zeros(len(levels), k)
        mean[:, : margins.gene_mean.shape[1]] = margins.gene_mean
        mean[:, 0] = (levels - mu).to(mean)
        var = torch.full_like(mean, LOADING_VAR)
        var[:, : margins.gene_mean.shape[1]] = diagonal(margins.gene_cov)
        cov = pack(torch.diag_embed(var))
        return replace(g, mu=mu, gene_mean=mean, gene_cov=cov, dispersion=dispersion, scales=scales)

    def _together(self, frequent: Tensor, rare: Tensor) -> Tensor:
        """Rows of all genes, in their order."""
        rows = rare.new_empty((len(self.genes) + len(self.others), *rare.shape[1:]))
        return rows.index_copy(0, self.others, frequent).index_copy(0, self.genes, rare)
