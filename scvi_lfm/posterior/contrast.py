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


@naming_memory("rank genes")
def contrast_genes(q: Posterior, cells: Tensor, reference: Tensor | None) -> Contrast:
    """Score every gene for the cells of a boolean mask, against those of another (None: the average fitted cell)."""
    difference, variance = _mean_of(q, cells)
    if reference is not None:
        other, other_variance = _mean_of(q, reference)
        difference, variance = difference - other, variance + other_variance
    difference = q.without_known(difference)
    v = extend(q.gene_mean)
    inner = torch.zeros_like(variance)
    inner[1:, 1:] = torch.outer(difference[1:], difference[1:]) + variance[1:, 1:]
    var = ((v @ variance) * v).sum(1) + q.gene_cov.inner(inner)
    return Contrast(v @ difference, var.sqrt())


def _mean_of(q: Posterior, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the average (a, A) of some cells."""
    return q.cell_mean[cells].mean(0), q.cell_cov.at(cells).total() / cells.sum().square()


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


def expected_eta(q: Posterior, cells: Tensor | None) -> Tensor:
    """Mean over the cells of a mask of expected eta, (m,); None: the average fitted cell."""
    base = q.mu + q.gene_mean[:, 0]
    return base if cells is None else base + extend(q.gene_mean) @ q.without_known(q.cell_mean[cells].mean(0))
