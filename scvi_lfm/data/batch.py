"""A block of cells on the device, with the products that inference needs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

if TYPE_CHECKING:
    import scipy.sparse as sp
    from torch import Tensor

    from .entries import Observed

NEGLIGIBLE = 1e-30
ROWS_PER_SUM = 1024


@dataclass(frozen=True)
class Batch:
    """A block of cells on the device, with the products that inference needs."""

    values: sp.csr_array | Tensor  # the block on the host (sparse), or on the device (dense)
    device: torch.device
    observed: Observed | None = None  # which entries are data; None: all
    covariates: np.ndarray | None = None  # (cells, p)

    @cached_property
    def by_cell(self) -> Tensor:
        """The block, (cells, genes)."""
        return self.values if isinstance(self.values, torch.Tensor) else _to_device(self.values, self.device)

    @cached_property
    def by_gene(self) -> Tensor:
        """The transposed block, (genes, cells).

        Made anew: a product with the transposed view of a compressed matrix takes many times longer than this copy.
        """
        if isinstance(self.values, torch.Tensor):
            return self.values.T
        return _to_device(self.values.tocsc().T, self.device)

    @property
    def n_cells(self) -> int:
        """Number of cells in the block."""
        return self.values.shape[0]

    @cached_property
    def known(self) -> Tensor:
        """Covariates of the cells, (cells, p) in float64; no column where there are none."""
        if self.covariates is None:
            return torch.zeros(self.n_cells, 0, dtype=torch.float64, device=self.device)
        return torch.as_tensor(self.covariates, dtype=torch.float64, device=self.device)

    def times_genes(self, weights: Tensor) -> Tensor:
        """Sum over genes: `Y @ weights`, (cells, k) in float64, of products in the data's precision."""
        return _scaled_product(self.by_cell, weights)

    def times_cells(self, weights: Tensor) -> Tensor:
        """Sum over cells: `Y.T @ weights`, (genes, k) in float64, of products in the data's precision."""
        return _scaled_product(self.by_gene, weights)

    @cached_property
    def square_sums(self) -> Tensor:
        """Sum of squares of each gene, (genes,) in float64."""
        ones = torch.ones(self.n_cells, 1, dtype=self.by_gene.dtype, device=self.by_gene.device)
        return (_squared(self.by_gene) @ ones)[:, 0].double()

    def squares_times_genes(self, weights: Tensor) -> Tensor:
        """Sum over genes of `y^2 w_j`, (cells,) in float64."""
        return _scaled_product(_squared(self.by_cell), weights[:, None])[:, 0]

    def squares_times_cells(self, weights: Tensor) -> Tensor:
        """Sum over cells of `y^2 w_i`, (genes,) in float64."""
        return _scaled_product(_squared(self.by_gene), weights[:, None])[:, 0]

    @cached_property
    def _pattern_by_cell(self) -> Tensor:
        return _to_device(cast("Observed", self.observed).pattern, self.device)

    @cached_property
    def _pattern_by_gene(self) -> Tensor:
        return _to_device(cast("Observed", self.observed).pattern.tocsc().T, self.device)

    def observed_times_genes(self, values: Tensor) -> Tensor:
        """Sum of `values` (genes, k) over the genes observed in each cell, (cells, k), in the data's precision."""
        if self.observed is None:
            return column_sums(values).to(self._dtype).expand(self.n_cells, -1)
        return _sum_observed(self._pattern_by_cell, values, only=self.observed.only)

    def observed_times_cells(self, values: Tensor) -> Tensor:
        """Sum of `values` (cells, k) over the cells in which each gene was observed, (genes, k)."""
        if self.observed is None:
            return column_sums(values).to(self._dtype).expand(self.values.shape[1], -1)
        return _sum_observed(self._pattern_by_gene, values, only=self.observed.only)

    @property
    def _dtype(self) -> torch.dtype:
        if isinstance(self.values, torch.Tensor):
            return self.values.dtype
        return torch.float64 if self.values.dtype == np.float64 else torch.float32

    def is_observed(self) -> Tensor | None:
        """Which entries are data, a boolean (cells, genes) tensor; None: all."""
        if self.observed is None:
            return None
        inside = self._pattern_by_cell.to_dense() != 0
        return inside if self.observed.only else ~inside

    def dense(self) -> Tensor:
        """The block as a dense (cells, genes) tensor."""
        return self.by_cell if self.by_cell.layout == torch.strided else self.by_cell.to_dense()


def _scaled_product(matrix: Tensor, weights: Tensor) -> Tensor:
    # weights may lie anywhere in the range of float64, which the data's precision does not reach; and factors that die
    # out leave weights so small that denormal arithmetic would slow the product twentyfold
    largest = weights.abs().amax().clamp_min(torch.finfo(weights.dtype).tiny)
    scaled = torch.nn.functional.hardshrink(weights / largest, NEGLIGIBLE)
    return (matrix @ scaled.to(matrix.dtype)).double() * largest


def _sum_observed(pattern: Tensor, values: Tensor, *, only: bool) -> Tensor:
    # the operator @ would fill and copy the result before it is computed, which takes longer than computing it
    product = torch.empty(pattern.shape[0], values.shape[1], dtype=pattern.dtype, device=pattern.device)
    torch.addmm(product, pattern, values.to(pattern.dtype), beta=0, out=product)
    return product if only else torch.sub(column_sums(values).to(pattern.dtype), product, out=product)


def column_sums(values: Tensor) -> Tensor:
    """Sum over rows, (columns,) in float64, of short sums in the values' precision: as good, and ten times as fast."""
    return torch.stack([part.sum(0) for part in values.split(ROWS_PER_SUM)]).sum(0, dtype=torch.float64)


def _squared(matrix: Tensor) -> Tensor:
    if matrix.layout == torch.strided:
        return matrix.square()
    return _csr_tensor(matrix.crow_indices(), matrix.col_indices(), matrix.values().square(), tuple(matrix.shape))


def _to_device(matrix: sp.csr_array, device: torch.device) -> Tensor:
    # the data are not written to, so sharing a read-only array with torch is safe
    parts = [np.require(part, requirements="W") for part in (matrix.indptr, matrix.indices, matrix.data)]
    index_dtype = np.int32 if matrix.nnz < np.iinfo(np.int32).max else np.int64
    crow, col = (torch.from_numpy(part.astype(index_dtype, copy=False)).to(device) for part in parts[:2])
    return _csr_tensor(crow, col, torch.from_numpy(parts[2]).to(device), matrix.shape)


def _csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            crow, col, values, size=tuple(shape), device=values.device, check_invariants=False
        )
