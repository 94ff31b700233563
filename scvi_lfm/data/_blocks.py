"""Cells by genes in memory, handed out as blocks of cells on the device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

if TYPE_CHECKING:
    import scipy.sparse as sp
    from torch import Tensor

    from ._kind import ValueKind


NEGLIGIBLE = 1e-30
ROWS_PER_SUM = 1024


@dataclass(frozen=True)
class Observed:
    """Which entries are data: those of a pattern, or all but those of a pattern."""

    pattern: sp.csr_array  # (n, m): ones
    only: bool  # whether the pattern's entries alone are data

    def rows(self, rows: np.ndarray | slice, dtype: np.dtype | type) -> Observed:
        """That of some cells."""
        return Observed(cast("sp.csr_array", _take(self.pattern, rows)).astype(dtype, copy=False), self.only)


@dataclass(frozen=True)
class HeldOut:
    """Entries that are not fitted, to be predicted, in the order of cells."""

    cell: np.ndarray  # (h,): position
    gene: np.ndarray  # (h,): position
    y: np.ndarray  # (h,): value, float64

    def rows(self, rows: np.ndarray) -> HeldOut:
        """Those of some cells, at increasing positions, with the places of the cells among these."""
        first, last = np.searchsorted(self.cell, rows), np.searchsorted(self.cell, rows + 1)
        at = np.repeat(first - np.concatenate([[0], np.cumsum(last - first)[:-1]]), last - first)
        at = at + np.arange(len(at))
        return HeldOut(np.repeat(np.arange(len(rows)), last - first), self.gene[at], self.y[at])


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


@dataclass(frozen=True)
class CellMatrix:
    """Cells by genes in memory: compressed by rows, or dense, in the dtype that the AnnData holds."""

    values: sp.csr_array | np.ndarray
    observed: Observed | None = None  # which entries are data; None: all
    held_out: HeldOut | None = None
    covariates: np.ndarray | None = None  # (n, p) float64: what is known of each cell, coded
    kind: ValueKind | None = None  # of all values that were read
    level: float = 0.0  # taken off the data of every block; `values` have it still

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return self.values.shape

    @property
    def n_covariates(self) -> int:
        """Columns of the design matrix."""
        return 0 if self.covariates is None else self.covariates.shape[1]

    def at_genes(self, genes: np.ndarray) -> CellMatrix:
        """The columns of some genes, by position or mask."""
        observed = self.observed and replace(self.observed, pattern=self.observed.pattern[:, genes])
        return replace(self, values=self.values[:, genes], observed=observed, held_out=None, kind=None)

    def at_cells(self, rows: np.ndarray) -> CellMatrix:
        """The rows of some cells, by position, held-out entries left behind."""
        observed = self.observed and replace(self.observed, pattern=self.observed.pattern[rows])
        known = None if self.covariates is None else self.covariates[rows]
        return replace(self, values=self.values[rows], observed=observed, held_out=None, covariates=known)

    def row_sums(self) -> np.ndarray:
        """Sum of the data of each cell, less the level of each, (n,)."""
        if not self.level:
            return np.asarray(self.values.sum(axis=1)).ravel()
        count = np.full(self.shape[0], self.shape[1])
        if self.observed is not None:
            in_pattern = np.diff(self.observed.pattern.indptr)
            count = in_pattern if self.observed.only else count - in_pattern
        return np.asarray(self.values.sum(axis=1, dtype=np.float64)).ravel() - self.level * count

    @property
    def n_observed(self) -> int:
        """Number of entries that are data."""
        n_cells, n_genes = self.shape
        if self.observed is None:
            return n_cells * n_genes
        nnz = self.observed.pattern.nnz
        return nnz if self.observed.only else n_cells * n_genes - nnz

    def batch(self, rows: np.ndarray | slice | None, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """Cells `rows` (all if None) as a block on `device`."""
        rows = slice(None) if rows is None else rows
        block = _take(self.values, rows)
        known = None if self.covariates is None else self.covariates[rows]
        numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        observed = None if self.observed is None else self.observed.rows(rows, numpy_dtype)
        block = _less(block, self.level, observed, numpy_dtype) if self.level else _cast(block, numpy_dtype)
        values = torch.from_numpy(block).to(device) if isinstance(block, np.ndarray) else block
        return Batch(values, device, observed, known)


def _cast(block: sp.csr_array | np.ndarray, dtype: np.dtype | type) -> sp.csr_array | np.ndarray:
    """A block in the precision asked for; an array of its own where it is dense."""
    if isinstance(block, np.ndarray):
        return np.array(block, dtype=dtype, order="C")
    return block.astype(dtype, copy=False)


def _less(
    block: sp.csr_array | np.ndarray, level: float, observed: Observed | None, dtype: np.dtype | type
) -> sp.csr_array | np.ndarray:
    """A block less a level, subtracted in float64; zero where there are no data.

    Where zeros that are not stored are data, the block becomes dense: nearly all of its entries are stored.
    """
    if observed is not None and observed.only and not isinstance(block, np.ndarray):
        data = np.subtract(block.data, level, dtype=np.float64).astype(dtype)
        return type(block)((data, block.indices, block.indptr), shape=block.shape, copy=False)
    dense = block if isinstance(block, np.ndarray) else block.toarray()
    less = np.empty(dense.shape, dtype)
    np.subtract(dense, level, out=less, dtype=np.float64, casting="unsafe")
    if observed is not None:
        less[observed.pattern.nonzero()] = 0
    return less


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
        return torch.sparse_csr_tensor(crow, col, values, size=tuple(shape), check_invariants=False)
