"""The gauge in which a posterior is stored: PCA's conventions, with margins in a and b."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from .gauge import absorb, rotate, shift_constants, translate_cells, translate_genes
from .shared_clusters import slopes_within_clusters

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior

Q = TypeVar("Q", bound="Posterior")


def to_stored_gauge(q: Q) -> Q:
    """Move q and its prior so that mu is the grand mean, a and b are margins, and A.B is the interaction.

    Afterwards a, b, A and B have mean zero, B has orthonormal columns, and the columns of A are orthogonal with
    decreasing length; the largest entry of each column of B is positive. What covariates explain of (a, A), within
    clusters of cells that all of their values share, is in beta.
    """
    p = q.n_known
    q = translate_cells(_behind(p, q.cell_factors.double().mean(0))).posterior(q)
    q = translate_genes(_behind(p, q.gene_factors.double().mean(0))).posterior(q)
    if p:
        q = absorb(_explained(q)).posterior(q)
        q = translate_cells(_behind(p, q.cell_factors.double().mean(0))).posterior(q)
    from_cells, from_genes = q.cell_mean[:, 0].double().mean(), q.gene_mean[:, 0].double().mean()
    q = shift_constants(from_cells, from_genes, p + q.n_factors).posterior(q)
    if q.n_factors == 0:
        return q
    q = rotate(_canonical_rotation(q.cell_factors.double(), q.gene_factors.double()), p).posterior(q)
    factors = q.gene_factors
    largest = factors.gather(0, factors.abs().argmax(0, keepdim=True))[0]
    return rotate(torch.diag(torch.where(largest < 0, -1.0, 1.0).double()), p).posterior(q)


def _behind(n_known: int, vector: Tensor) -> Tensor:
    return torch.cat([vector.new_zeros(n_known), vector])


def _explained(q: Posterior) -> Tensor:
    """Slopes of (a, A) on the covariates within clusters, (r+1, p), with A in the units of its profiles."""
    p, B = q.n_known, q.gene_factors.double()
    cells = q.cell_mean.double()
    known, activity = cells[:, 1 : 1 + p], cells[:, :1]
    if q.n_factors == 0:
        return torch.linalg.solve(known.T @ known, known.T @ activity).T
    values, vectors = torch.linalg.eigh(B.T @ B)
    root = vectors * values.clamp_min(1e-14 * values.amax()).sqrt()  # |A root| is the length of A B'
    A = q.cell_factors.double() @ root
    # the least beta, with nothing along B; and the same average profile for all values of the covariates
    least = -torch.linalg.lstsq(torch.linalg.solve(root, B.T).T, q.gene_mean[:, 1 : 1 + p].double()).solution
    even = torch.linalg.solve(known.T @ known, known.T @ A).T
    slopes = slopes_within_clusters(torch.cat([activity, A], dim=1), known, [least, even])
    return torch.cat([slopes[:1], torch.linalg.solve(root.T, slopes[1:])])


def _canonical_rotation(A: Tensor, B: Tensor) -> Tensor:
    """R such that `A R` and `B R^-T` are the scaled left and the right singular vectors of `A B'`."""
    values, vectors = torch.linalg.eigh(B.T @ B)
    # a floor far below any factor that is on: the rotation must stay invertible
    root = vectors * values.clamp_min(1e-14 * values.amax()).sqrt()
    _, vectors = torch.linalg.eigh(root.T @ (A.T @ A) @ root)
    return root @ vectors.flip(1)
