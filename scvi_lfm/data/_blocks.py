"""Cells by genes in memory, handed out as blocks of cells on the device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import scipy.sparse as sp
    from torch import Tensor


NEGLIGIBLE = 1e-30


@dataclass(frozen=True)
class Batch:
    """A block of cells on the device, with the two products that inference needs."""

    values: sp.csr_array | Tensor  # the block on the host (sparse), or on the device (dense)
    device: torch.device

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

    def dense(self) -> Tensor:
        """The block as a dense (cells, genes) tensor."""
        return self.by_cell if self.by_cell.layout == torch.strided else self.by_cell.to_dense()


@dataclass(frozen=True)
class CellMatrix:
    """Cells by genes in memory: compressed by rows, or dense, in the dtype that the AnnData holds."""

    values: sp.csr_array | np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return self.values.shape

    def at_genes(self, genes: np.ndarray) -> CellMatrix:
        """The columns of some genes, by position or mask."""
        return CellMatrix(self.values[:, genes])

    def batch(self, rows: np.ndarray | slice | None, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """Cells `rows` (all if None) as a block on `device`."""
        block = _take(self.values, slice(None) if rows is None else rows)
        numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        if isinstance(block, np.ndarray):
            return Batch(torch.from_numpy(np.array(block, dtype=numpy_dtype, order="C")).to(device), device)
        return Batch(block.astype(numpy_dtype, copy=False), device)


def _take(values: sp.csr_array | np.ndarray, rows: np.ndarray | slice) -> sp.csr_array | np.ndarray:
    if isinstance(values, np.ndarray) or isinstance(rows, np.ndarray):
        return values[rows]
    # consecutive rows are a part of the same arrays: no copy
    start, stop, _ = rows.indices(values.shape[0])
    first, last = values.indptr[start], values.indptr[stop]
    parts = (values.data[first:last], values.indices[first:last], values.indptr[start : stop + 1] - first)
    return type(values)(parts, shape=(stop - start, values.shape[1]), copy=False)


def _scaled_product(matrix: Tensor, weights: Tensor) -> Tensor:
    # weights may lie anywhere in the range of float64, which the data's precision does not reach; and factors that die
    # out leave weights so small that denormal arithmetic would slow the product twentyfold
    largest = weights.abs().amax().clamp_min(torch.finfo(weights.dtype).tiny)
    scaled = torch.nn.functional.hardshrink(weights / largest, NEGLIGIBLE)
    return (matrix @ scaled.to(matrix.dtype)).double() * largest


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
        return torch.sparse_csr_tensor(crow, col, values, size=tuple(shape), check_invariants=False)
