r"""Alignment of genes with a set of cells, and of cells with a set of genes.

For cells C against cells R, with :math:`D = \mathrm{mean}_C (a, A) - \mathrm{mean}_R (a, A)` and
:math:`\delta` its A part,

.. math::

    \mathrm{score}_j &= v_j \cdot D = D_a + \delta \cdot B_j \\
    \mathrm{var}_j &= v_j' V v_j + \delta' T_{BB,j} \delta + \mathrm{tr}(T_{BB,j} V_{AA}), \qquad
    V = S / |C| + S / |R|

The score is the difference of expected eta; its order is that of the inner products, and no gauge move changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.likelihoods.normal import upper_tail
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
    def lfsr(self) -> Tensor:
        """Local false sign rate: the posterior probability that the sign of the score is wrong."""
        return upper_tail((self.score / self.sd).abs())


def contrast_genes(q: Posterior, cells: Tensor, reference: Tensor | None) -> Contrast:
    """Score every gene for the cells of a boolean mask, against those of another (None: the average fitted cell)."""
    difference, variance = q.cell_mean[cells].mean(0), q.cell_cov / cells.sum()
    if reference is not None:
        difference = difference - q.cell_mean[reference].mean(0)
        variance = variance + q.cell_cov / reference.sum()
    v = extend(q.gene_mean)
    diagonal = q.gene_diagonal(q.predictive_sigma)
    factors = q.gene_basis[1:]
    from_genes = (difference[1:] @ factors).square() + ((variance[1:, 1:] @ factors) * factors).sum(0)
    var = ((v @ variance) * v).sum(1) + diagonal @ from_genes
    return Contrast(v @ difference, var.sqrt())


def contrast_cells(q: Posterior, genes: Tensor) -> Contrast:
    """Score every cell for the genes at some positions: A_i . mean(B), expression beyond activity and abundance."""
    diagonal = q.gene_diagonal(q.predictive_sigma)[genes].sum(0) / len(genes) ** 2
    factors = q.gene_basis[1:]
    gene_cov = (factors * diagonal) @ factors.T
    direction = q.gene_mean[genes, 1:].mean(0)
    A, cell_cov = q.cell_mean[:, 1:], q.cell_cov[1:, 1:]
    var = direction @ cell_cov @ direction + ((A @ gene_cov) * A).sum(1) + (cell_cov * gene_cov).sum()
    return Contrast(A @ direction, var.sqrt())


def expected_eta(q: Posterior, cells: Tensor | None) -> Tensor:
    """Mean over the cells of a mask of expected eta, (m,); None: the average fitted cell."""
    base = q.mu + q.gene_mean[:, 0]
    return base if cells is None else base + extend(q.gene_mean) @ q.cell_mean[cells].mean(0)
