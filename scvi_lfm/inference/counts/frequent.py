"""Most genes are rare and tell little of the cells: epochs see the others, and the last steps all of them.

Rare genes stay at their margins meanwhile. Once the others have settled they get their factors from the cells as these
are, and then all genes and cells move together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...linalg.packed import diagonal, pack, unpack
from .dispersion import DispersionPrior
from .gene_step import dispersions, solve_genes
from .last_step import settle, statistics_of_all
from .start import START_VAR

from ...data import CellMatrix
from ...model.likelihoods import LIKELIHOODS
from .groups import Groups

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import CellMatrix
    from .state import Cells, CountGlobals, CountProblem, CountStatistics

# frequent genes hold so much of what is seen, and are at least so many
SHARE, LEAST = 0.9, 2000
# steps of the rare genes from their margins; the last step on all genes follows
STEPS = 1
SETTLE = False


def frequent_genes(matrix: CellMatrix) -> np.ndarray | None:
    """Positions of the genes that most cells' counts are of, from some cells; None where they are nearly all."""
    seen = matrix.source.pattern().sum(0) if matrix.source.is_sparse else (matrix.stored() != 0).sum(0)
    order = np.argsort(-seen, kind="stable")
    enough = int(np.searchsorted(np.cumsum(seen[order]), SHARE * seen.sum())) + 1
    return None if max(enough, LEAST) > SHARE * len(seen) else np.sort(order[: max(enough, LEAST)])


@dataclass(frozen=True)
class Rare:
    """The genes left out of the epochs, at their margins."""

    genes: Tensor  # positions among all
    others: Tensor  # positions of the frequent ones
    margins: CountGlobals  # of the rare genes
    matrix: CellMatrix  # all cells, the rare genes alone

    @classmethod
    def of(cls, frequent: np.ndarray, margins: CountGlobals, matrix: CellMatrix) -> Rare:
        """Those that are not among the frequent ones."""
        is_rare = np.ones(matrix.shape[1], dtype=bool)
        is_rare[frequent] = False
        device = margins.mu.device
        rare = torch.from_numpy(np.flatnonzero(is_rare)).to(device)
        return cls(rare, torch.from_numpy(frequent).to(device), margins.at(rare), matrix.at_genes(is_rare))

    def joined(
        self, problem: CountProblem, g: CountGlobals, cells: Cells, statistics: CountStatistics, share: float
    ) -> tuple[CountGlobals, CountStatistics]:
        """All genes: the frequent ones as they are, the rare ones after steps from their margins."""
        learns = problem.likelihood.learns_dispersion
        prior = DispersionPrior.learned(statistics, problem.n_cells) if learns else None
        some = self._beside(g)
        if prior is not None:
            print("disp start",float(some.dispersion[0]), float(prior.centre.exp()))
            some = replace(some, dispersion=prior.centre.exp().to(some.dispersion).expand(len(self.genes)))
        # groups of cells are counted as if each were one
        groups = Groups.of(cells)
        few = replace(problem, n_genes=len(self.genes), n_cells=groups.count)
        some0 = replace(some, dispersion=some.dispersion * groups.count / problem.n_cells)
        matrix = CellMatrix.of(groups.sums(self.matrix))
        every = statistics_of_all(few, some0, groups.cells, matrix)
        solved = solve_genes(few, some0, every)
        some2 = replace(some0, gene_mean=solved.within(some.gene_mean).mean, gene_cov=solved.cov)
        some2 = settle(few, some2, groups.cells, every, torch.full_like(solved.missing,torch.inf), matrix, 0.0)
        some = replace(some2, dispersion=some.dispersion)
        few = replace(problem, n_genes=len(self.genes))
        if SETTLE:
            fresh = statistics_of_all(few, some, cells, self.matrix)
            solved = solve_genes(few, some, fresh)
            new = dispersions(few, some, fresh, 1.0, prior)
            some = replace(some, gene_mean=solved.mean, gene_cov=solved.cov, dispersion=new)
            print('disp', some.dispersion.log().quantile(torch.tensor([.1,.5,.9])))
            some = settle(few, some, cells, fresh, solved.missing, self.matrix, share, prior)
            statistics = replace(statistics, weighted=self._together(statistics.weighted, fresh.weighted))
        shift = some.mu - g.mu
        everything = replace(
            some,
            gene_mean=self._together(torch.cat([g.gene_mean[:, :1] - shift, g.gene_mean[:, 1:]], dim=1), some.gene_mean),
            gene_cov=self._together(g.gene_cov, some.gene_cov),
            dispersion=self._together(g.dispersion, some.dispersion),
        )
        return everything.with_scales_learned(statistics.xx[1, 1]), statistics

    def _beside(self, g: CountGlobals) -> CountGlobals:
        """The rare genes without factors, mu and the scale of b at their best for all genes."""
        margins, more = self.margins, g.gene_mean.shape[1] - self.margins.gene_mean.shape[1]
        b = margins.gene_mean[:, 0].double() + margins.mu
        n = len(g.gene_mean) + len(b)
        own = g.gene_mean[:, 0].double() + g.mu
        mu = (own.sum() + b.sum()) / n
        var = ((own - mu).square().sum() + (b - mu).square().sum()) / n
        scales = g.scales if "b" in g.scales.fixed else replace(g.scales, b=var.sqrt())
        mean = torch.cat([(b - mu).to(g.gene_mean)[:, None], margins.gene_mean[:, 1:]], dim=1)
        cov = unpack(margins.gene_cov)
        cov = torch.nn.functional.pad(cov, (0, more, 0, more))
        cov.diagonal(dim1=-2, dim2=-1)[:, -more:] = START_VAR / 5
        return replace(
            g,
            mu=mu,
            gene_mean=torch.nn.functional.pad(mean, (0, more)),
            gene_cov=pack(cov),
            dispersion=g.dispersion.median().expand(len(b)),
            scales=scales,
        )

    def _together(self, frequent: Tensor, rare: Tensor) -> Tensor:
        """Rows of all genes, in their order."""
        everything = rare.new_empty((len(self.genes) + len(self.others), *rare.shape[1:]))
        return everything.index_copy(0, self.others, frequent).index_copy(0, self.genes, rare)
