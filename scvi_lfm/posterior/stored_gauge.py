"""The gauge in which a posterior is stored: PCA's conventions, with margins in a and b."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from ..linalg.moments import row_moment
from .gauge import absorb, identity, rotate, shift_constants, translate_cells, translate_genes
from .shared_clusters import slopes_within_clusters

if TYPE_CHECKING:
    from torch import Tensor

    from .gauge import Move
    from .posterior import Posterior

Q = TypeVar("Q", bound="Posterior")


def to_stored_gauge(q: Q) -> Q:
    """Move q and its prior so that mu is the grand mean, a and b are margins, and A.B is the interaction.

    Afterwards a, b, A and B have mean zero, B has orthonormal columns, and the columns of A are orthogonal with
    decreasing length; the largest entry of each column of B is positive. What covariates explain of (a, A), within
    clusters of cells that all of their values share, is in beta.
    """
    p, total = q.n_known, identity(q.n_known + q.n_factors, q.gene_mean.device)
    # the moves depend on moments of the means; the means themselves and covariances are moved once, by their product
    x_x, xi_xi = row_moment(q.cell_mean.double()) / len(q.cell_mean), row_moment(q.gene_mean.double())
    factors = slice(2 + p, None)

    def move(by: Move) -> None:
        nonlocal x_x, xi_xi, total
        of_cells, of_genes = by.cell_moments(), by.gene_moments()
        x_x, xi_xi = of_cells @ x_x @ of_cells.T, of_genes @ xi_xi @ of_genes.T
        total = total.then(by)

    move(translate_cells(x_x[0, factors], p))
    move(translate_genes(xi_xi[0, factors] / len(q.gene_mean), p))
    if p:
        means = replace(q, cell_mean=total.cells(q.cell_mean), gene_mean=total.genes(q.gene_mean))
        move(absorb(_explained(means)))
        move(translate_cells(x_x[0, factors], p))
    move(shift_constants(x_x[0, 1], xi_xi[0, 1] / len(q.gene_mean), p + q.n_factors))
    if q.n_factors:
        move(rotate(_canonical_rotation(x_x[factors, factors], xi_xi[factors, factors]), p))
        moved = total.genes(q.gene_mean)[:, 1 + p :]
        largest = moved.gather(0, moved.abs().argmax(0, keepdim=True))[0]
        move(rotate(torch.diag(torch.where(largest < 0, -1.0, 1.0).double()), p))
    return total.posterior(q)


def _explained(q: Posterior) -> Tensor:
    """Slopes of (a, A) on the covariates within clusters, (r+1, p), with A in the units of its profiles."""
    p, B = q.n_known, q.gene_factors.double()
    cells = q.cell_mean.double()
    known, activity = cells[:, 1 : 1 + p], cells[:, :1]
    if q.n_factors == 0:
        return torch.linalg.solve(known.T @ known, known.T @ activity).T
    root = _root(B.T @ B)  # |A root| is the length of A B'
    A = q.cell_factors.double() @ root
    # the least beta, with nothing along B; and the same average profile for all values of the covariates
    least = -torch.linalg.lstsq(torch.linalg.solve(root, B.T).T, q.gene_mean[:, 1 : 1 + p].double()).solution
    even = torch.linalg.solve(known.T @ known, known.T @ A).T
    slopes = slopes_within_clusters(torch.cat([activity, A], dim=1), known, [least, even])
    return torch.cat([slopes[:1], torch.linalg.solve(root.T, slopes[1:])])


def _canonical_rotation(A_A: Tensor, B_B: Tensor) -> Tensor:
    """R such that `A R` and `B R^-T` are the scaled left and the right singular vectors of `A B'`, from A'A and B'B."""
    root = _root(B_B)
    _, vectors = torch.linalg.eigh(root.T @ A_A @ root)
    return root @ vectors.flip(1)


def _root(B_B: Tensor) -> Tensor:
    """L with L L' = B'B."""
    values, vectors = torch.linalg.eigh(B_B)
    # a floor far below any factor that is on: the rotation must stay invertible
    return vectors * values.clamp_min(1e-14 * values.amax()).sqrt()
