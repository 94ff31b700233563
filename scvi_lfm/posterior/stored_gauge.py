"""The gauge in which a posterior is stored: PCA's conventions, with margins in a and b."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from .gauge import rotate, shift_constants, translate_cells, translate_genes

if TYPE_CHECKING:
    from torch import Tensor

    from .posterior import Posterior

Q = TypeVar("Q", bound="Posterior")


def to_stored_gauge(q: Q) -> Q:
    """Move q and its prior so that mu is the grand mean, a and b are margins, and A.B is the interaction.

    Afterwards a, b, A and B have mean zero, B has orthonormal columns, and the columns of A are orthogonal with
    decreasing length; the largest entry of each column of B is positive.
    """
    q = translate_cells(q.cell_mean[:, 1:].double().mean(0)).posterior(q)
    q = translate_genes(q.gene_mean[:, 1:].double().mean(0)).posterior(q)
    from_cells, from_genes = q.cell_mean[:, 0].double().mean(), q.gene_mean[:, 0].double().mean()
    q = shift_constants(from_cells, from_genes, q.n_factors).posterior(q)
    if q.n_factors == 0:
        return q
    q = rotate(_canonical_rotation(q.cell_mean[:, 1:].double(), q.gene_mean[:, 1:].double())).posterior(q)
    factors = q.gene_mean[:, 1:]
    largest = factors.gather(0, factors.abs().argmax(0, keepdim=True))[0]
    return rotate(torch.diag(torch.where(largest < 0, -1.0, 1.0).double())).posterior(q)


def _canonical_rotation(A: Tensor, B: Tensor) -> Tensor:
    """R such that `A R` and `B R^-T` are the scaled left and the right singular vectors of `A B'`."""
    values, vectors = torch.linalg.eigh(B.T @ B)
    # a floor far below any factor that is on: the rotation must stay invertible
    root = vectors * values.clamp_min(1e-14 * values.amax()).sqrt()
    _, vectors = torch.linalg.eigh(root.T @ (A.T @ A) @ root)
    return root @ vectors.flip(1)
