r"""Alignment of genes with a set of cells, and of cells with a set of genes.

For cells :math:`\mathcal C` against cells :math:`\mathcal R`, with D the mean of (a, A) over the first less that over
the second, and :math:`D_A` its A part,

.. math::

    \mathrm{score}_j &= v_j \cdot D = D_a + D_A \cdot B_j \\
    \mathrm{sd}_j^2 &= v_j' \, \mathrm{var}(D) \, v_j + D_A' T_{BB,j} D_A
        + \mathrm{tr}(T_{BB,j} \, \mathrm{var}(D)_{AA}) \\
    \mathrm{var}(D) &= \sum_{i \in \mathcal C} S_i / |\mathcal C|^2 + \sum_{i \in \mathcal R} S_i / |\mathcal R|^2

The score is the difference of expected eta; its order is that of the inner products, and no gauge move changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .._memory import naming_memory
from ..model.likelihoods.normal import standard_tail
from .posterior import extend

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior


@dataclass(frozen=True)
class Contrast:
    """Scores of one set against another."""

    score: Tensor
    sd: Tensor

    @property
    def in_sds(self) -> Tensor:
        """Scores over their standard deviations."""
        # without factors there is neither score nor spread, and so no sign
        return torch.where(self.score == 0, 0.0, self.score / self.sd)

    @property
    def lfsr(self) -> Tensor:
        """Local false sign rate: the posterior probability that the sign of the score is wrong."""
        return standard_tail(self.in_sds.abs())


@dataclass(frozen=True)
class Sums:
    """Sums over some cells of the means and covariances of (a, A), to which those over others are added."""

    n_cells: int
    mean: Tensor  # (r+1,)
    cov: Tensor  # (r+1, r+1)

    @classmethod
    def of(cls, q: Posterior, cells: Tensor) -> Sums:
        """Sums over the cells of a boolean mask."""
        return cls(int(cells.sum()), q.cell_mean[cells].sum(0), q.cell_cov.at(cells).total())

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n_cells + other.n_cells, self.mean + other.mean, self.cov + other.cov)


@naming_memory("rank genes")
def contrast_genes(q: Posterior, cells: Sums, reference: Sums | None) -> Contrast:
    """Score every gene for some cells, against others (None: the average fitted cell)."""
    difference, variance = cells.mean / cells.n_cells, cells.cov / cells.n_cells**2
    if reference is not None:
        difference = difference - reference.mean / reference.n_cells
        variance = variance + reference.cov / reference.n_cells**2
    difference = q.without_known(difference)
    v = extend(q.gene_mean)
    inner = torch.zeros_like(variance)
    inner[1:, 1:] = torch.outer(difference[1:], difference[1:]) + variance[1:, 1:]
    var = ((v @ variance) * v).sum(1) + q.gene_cov.inner(inner)
    return Contrast(v @ difference, var.sqrt())


@naming_memory("rank cells")
def contrast_cells(q: Posterior, genes: Tensor) -> Contrast:
    """Score every cell for the genes at some positions: A_i . mean(B), expression beyond activity and abundance."""
    gene_cov = q.gene_cov.at(genes).total() / len(genes) ** 2
    direction = q.gene_mean[genes].mean(0)
    inner = gene_cov + torch.outer(direction, direction)
    inner[0], inner[:, 0] = 0, 0
    A, first = q.cell_factors, 1 + q.n_known
    var = q.cell_cov.inner(inner) + ((A @ gene_cov[first:, first:]) * A).sum(1)
    return Contrast(A @ direction[first:], var.sqrt())


def expected_eta(q: Posterior, cells: Sums | None) -> Tensor:
    """Mean over some cells of expected eta, (m,); None: the average fitted cell."""
    base = q.mu + q.gene_mean[:, 0]
    return base if cells is None else base + extend(q.gene_mean) @ q.without_known(cells.mean / cells.n_cells)
