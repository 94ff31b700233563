r"""Covariances in a form that is small enough for a page.

Cells: one matrix where it is that of all; else

.. math:: S_i \approx \bar S + \sum_k c_{ik} M_k ,

the leading components of :math:`L^{-1} S_i L^{-\prime}` with :math:`\bar S = L L'`, in which differences are relative.
It is linear in what differs between cells, and so is the mean over any set of them.

Genes: variances in the basis that they share; else variances and correlations in one that makes the latter small,

.. math:: T_{BB,j} \approx V\,(d_{jk}^{1/2} \rho_{jkl} d_{jl}^{1/2})_{kl}\,V' ,

in which the prior is the identity and the average information of a gene diagonal. Correlations take a byte each, of
which most are near zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...linalg.packed import congruent, doubled, unpack

if TYPE_CHECKING:
    import numpy as np

    from ...linalg.covariances import Covariance

COMPONENTS, EXPLAINED = 8, 0.999
SAMPLED_CELLS, SAMPLED_GENES = 10_000, 2_000
ROWS_PER_BLOCK = 1_024
STEPS = 127  # of a byte, either side of zero


@dataclass(frozen=True)
class OfCells:
    """Matrices (1 + K, k, k), and for each of the last K the coefficients of cells (n,), in steps."""

    matrices: np.ndarray
    coefficients: list[np.ndarray]
    steps: list[float]


def of_cells(cov: Covariance, n: int, free: torch.Tensor) -> OfCells:
    """Covariances of cells at some coordinates."""
    positions = _positions(free)
    if is_common(cov):
        return OfCells(unpack(cov.packed()[:, positions].double()).numpy(), [], [])
    sample = cov.at(slice(0, n, -(-n // SAMPLED_CELLS))).packed()[:, positions].double()
    mean = sample.mean(0)
    root = torch.linalg.cholesky(unpack(mean))
    weight = doubled(len(free), mean).sqrt()
    relative = congruent(torch.linalg.inv(root), sample - mean) * weight
    shares, vectors = torch.linalg.eigh(relative.T @ relative)
    shares, vectors = shares.flip(0).clamp_min(0), vectors.flip(1).T[:COMPONENTS]
    told = shares.cumsum(0) / shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)
    vectors = vectors[: 1 + int((told < EXPLAINED).sum())] if shares.sum() > len(sample) * 1e-12 else vectors[:0]
    # a coefficient is linear in the packed values: <v, L^-1 S L^-T> = <L^-T v L^-1, S>
    asked = congruent(torch.linalg.inv(root).T, vectors / weight) * weight.square()
    found = torch.cat(
        [
            (cov.at(slice(start, start + ROWS_PER_BLOCK)).packed()[:, positions].double() - mean) @ asked.T
            for start in range(0, n, ROWS_PER_BLOCK)
        ]
    )
    steps = (found.abs().amax(0) / STEPS).clamp_min(1e-300)
    matrices = torch.cat([mean[None], congruent(root, vectors / weight)])
    in_steps = (found / steps).round().to(torch.int8)
    return OfCells(unpack(matrices).numpy(), list(in_steps.T.contiguous().numpy()), steps.tolist())


def is_common(cov: Covariance) -> bool:
    """Whether one matrix is that of all rows."""
    return len(cov.at(slice(0, 2)).packed()) == 1


def _positions(free: torch.Tensor) -> torch.Tensor:
    """Positions of the lower triangle of some coordinates in that of all."""
    rows, columns = torch.tril_indices(len(free), len(free), device=free.device)
    return free[rows] * (free[rows] + 1) // 2 + free[columns]


def of_genes(cov: Any, prior: torch.Tensor, first: int) -> tuple[str, dict[str, np.ndarray]]:
    """Name of the form that covariances of genes have, and its arrays; of the coordinates from `first` on."""
    if not cov.by_row:
        arrays = {"gene_transform": cov.basis[first:], "gene_eigenvalues": cov.eig, "gene_sigma": cov.sigma.float()}
        return "eigenbasis", {name: values.numpy() for name, values in arrays.items()}
    packed = cov.packed()
    basis = _basis(unpack(packed[:: -(-len(packed) // SAMPLED_GENES)].double())[:, first:, first:], prior)
    inverse, r = torch.linalg.inv(basis), len(basis)
    rows, columns = torch.tril_indices(r, r, -1, device=packed.device)
    variances, correlations = [], []
    for block in packed.split(ROWS_PER_BLOCK):
        moved = inverse @ unpack(block.double())[:, first:, first:] @ inverse.T
        variance = moved.diagonal(dim1=1, dim2=2)
        scale = (variance[:, rows] * variance[:, columns]).sqrt()
        variances.append(variance.float())
        correlations.append((STEPS * moved[:, rows, columns] / scale).round().to(torch.int8))
    return "correlations", {
        "gene_transform": basis.numpy(),
        "gene_variances": torch.cat(variances).numpy(),
        "gene_correlation": torch.cat(correlations).numpy(),
    }


def _basis(covs: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """V with prior V V', in which the average information, each gene's over its trace, is diagonal."""
    root = torch.linalg.cholesky(prior)
    information = root.T @ (torch.linalg.inv(covs) - torch.linalg.inv(prior)) @ root
    traces = information.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-12)
    return root @ torch.linalg.eigh((information / traces[:, None, None]).mean(0))[1]
