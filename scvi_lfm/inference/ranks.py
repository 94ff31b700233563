r"""The lower bound of every smaller rank, from the averages over cells that one fit already holds.

In the gauge of the fit factors are ordered by :math:`\sum_j E[B_{jk}^2]` and nearly orthogonal, so that the leading k
of r are close to a fit of k. What cells say of them is kept, and genes, mu, noise and scales are solved for anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .normal.elbo import elbo
from .normal.sweep import Step, gene_step, keep_factors

if TYPE_CHECKING:
    from torch import Tensor

    from .normal.sweep import Problem

# gene steps for each rank; the genes answer to the noise and the noise to them
GENE_STEPS = 2


@dataclass(frozen=True)
class RankCurve:
    """What is known of the leading k factors of a fit, for k = 0, ..., r."""

    elbo: list[float]  # per entry
    effective: list[float]
    held_out: list[float] | None = None  # log density per entry held out

    @property
    def best(self) -> int:
        """The number of factors of highest ELBO."""
        return max(range(len(self.elbo)), key=self.elbo.__getitem__)

    def followed_by(self, longer: RankCurve) -> RankCurve:
        """This curve, and beyond its end what an earlier fit with more factors had."""
        end = len(self.elbo)
        held_out = None
        if self.held_out is not None and longer.held_out is not None:
            held_out = self.held_out + longer.held_out[end:]
        return RankCurve(self.elbo + longer.elbo[end:], self.effective + longer.effective[end:], held_out)


def normal_curve(problem: Problem, step: Step) -> RankCurve:
    """The curve of a Normal fit: closed forms of the averages over cells, without a look at the data."""
    values, r = [], step.globals.n_factors
    effective = effective_factors(step.statistics.xx, step.cell_cov, r)
    for k in range(r, -1, -1):
        if k < r:
            step = leading_factors(problem, step, k)
        values.append(elbo(step.globals, step.statistics, step.cell_cov, problem.n_cells))
    n_entries = problem.n_cells * problem.n_genes
    return RankCurve((torch.stack(values[::-1]) / n_entries).tolist(), effective)


def leading_factors(problem: Problem, step: Step, n_factors: int) -> Step:
    """The step with its leading factors alone, and the rest of the model fitted to what cells say of them."""
    kept = torch.arange(n_factors, device=step.globals.mu.device)
    step = keep_factors(problem, step, kept)
    for _ in range(GENE_STEPS):
        step = Step(*gene_step(problem, step.globals, step.statistics, step.cell_cov), step.local_elbo)
    return step


def effective_factors(cell_moment: Tensor, cell_cov: Tensor, n_factors: int) -> list[float]:
    """Sums over the leading factors of the share of `mean E[A_k^2]` that is known, `1 - S_kk / mean E[A_k^2]`."""
    known = 1 - (cell_cov.diagonal() / cell_moment.diagonal()[1:])[len(cell_cov) - n_factors :]
    return [0.0, *known.cumsum(0).tolist()]
