"""A block of cells on the device, with the products that inference needs."""

from __future__ import annotations

import functools
import threading
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import scipy.sparse as sp
import torch

from .._lazy import lazy_property
from .._workers import in_order
from ..linalg.half import half_product
from ..linalg.panels import compressed_product, panels, times_panels
from .canonical import of_parts
from .memory import take
from .transfer import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from .entries import Observed

NEGLIGIBLE = 1e-30
ROWS_PER_SUM = 1024
ROWS_MADE_DENSE = 64
_FIRST = threading.Lock()


class Scaled:
    """Weights (rows, k) of any size, with 1 as their largest, for products in the data's precision.

    They may lie anywhere in the range of float64, which that precision does not reach; and factors that die out leave
    weights so small that denormal arithmetic would slow a product twentyfold.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._scale = torch.linalg.vector_norm(weights, torch.inf).clamp_min(torch.finfo(weights.dtype).tiny)
        self._values: dict[torch.dtype, Tensor] = {}
        self._panels: dict[torch.dtype, list[Tensor]] = {}
        self._making = threading.Lock()

    def __reduce__(self) -> tuple[type[Scaled], tuple[Tensor]]:
        return Scaled, (self._weights,)

    def values(self, dtype: torch.dtype) -> Tensor:
        """The weights over the largest, made once."""
        with self._making:
            if dtype not in self._values:
                values = (self._weights / self._scale).to(dtype)
                self._values[dtype] = torch.nn.functional.hardshrink(values, NEGLIGIBLE)
            return self._values[dtype]

    def panels(self, dtype: torch.dtype) -> list[Tensor]:
        """The values by panels of columns, made once."""
        values = self.values(dtype)
        with self._making:
            if dtype not in self._panels:
                self._panels[dtype] = panels(values)
            return self._panels[dtype]

    def times(self, product: Tensor) -> Tensor:
        """Product with the weights, in float64, from that with the values."""
        return product.double().mul_(self._scale)


@dataclass(frozen=True)
class Batch:
    """A block of cells on the device, with the products that inference needs."""

    values: sp.csr_array | Tensor  # the block on the host (sparse), or on the device (dense)
    device: torch.device
    observed: Observed | None = None  # which entries are data; None: all
    covariates: np.ndarray | None = None  # (cells, p)
    lasts: bool = False  # whether many products are to come, for which a transposed copy pays
    half: bool = False  # whether a GPU multiplies a sparse block as a dense one, in half precision

    @lazy_property
    def by_cell(self) -> Tensor:
        """The block, (cells, genes)."""
        return self.values if isinstance(self.values, torch.Tensor) else _compressed(self.values, self.device)

    @lazy_property
    def by_gene(self) -> Tensor:
        """The transposed block, (genes, cells).

        Made anew: a product with the transposed view of a compressed matrix takes many times longer than this copy.
        """
        if isinstance(self.values, torch.Tensor):
            return self.values.T
        return _transposed(self.values, self.by_cell)

    @lazy_property
    def _dense_half(self) -> Tensor:
        crow, col, values = _parts(self.by_cell)
        return csr_tensor(crow, col, values.half(), self.values.shape).to_dense()

    @property
    def n_cells(self) -> int:
        """Number of cells in the block."""
        return self.values.shape[0]

    @lazy_property
    def known(self) -> Tensor:
        """Covariates of the cells, (cells, p) in float64; no column where there are none."""
        if self.covariates is None:
            return torch.zeros(self.n_cells, 0, dtype=torch.float64, device=self.device)
        return to_device(self.covariates.astype(np.float64, copy=False), self.device)

    def send(self) -> list[Tensor]:
        """Have on the device what steps need of the host, and tell where it lies there."""
        compressed = [self.by_cell, *([] if self.observed is None else [self._pattern_by_cell])]
        return [part for matrix in compressed for part in _parts(matrix)] + [self.known]

    def times_genes(self, weights: Scaled) -> Tensor:
        """Sum over genes: `Y @ weights`, (cells, k) in float64, of products in the data's precision."""
        if self.half:
            return weights.times(half_product(self._dense_half, weights.values(self._dtype)))
        if self._is_dense or self.device.type != "cpu":
            return weights.times(self.by_cell @ weights.values(self._dtype))
        return weights.times(times_panels(self.by_cell, weights.panels(self._dtype)))

    def times_cells(self, weights: Tensor) -> Tensor:
        """Sum over cells: `Y.T @ weights`, (genes, k) in float64, of products in the data's precision."""
        scaled = Scaled(weights)
        return scaled.times(self._scatter(scaled.values(self._dtype)))

    @lazy_property
    def square_sums(self) -> Tensor:
        """Sum of squares of each gene, (genes,) in float64."""
        ones = torch.ones(self.n_cells, 1, dtype=self._dtype, device=self.device)
        return self._scatter(ones, squared=True)[:, 0].double()

    def squares_times_genes(self, weights: Tensor) -> Tensor:
        """Sum over genes of `y^2 w_j`, (cells,) in float64."""
        scaled = Scaled(weights[:, None])
        return scaled.times(_squared(self.by_cell) @ scaled.values(self._dtype))[:, 0]

    def squares_times_cells(self, weights: Tensor) -> Tensor:
        """Sum over cells of `y^2 w_i`, (genes,) in float64."""
        scaled = Scaled(weights[:, None])
        return scaled.times(self._scatter(scaled.values(self._dtype), squared=True))[:, 0]

    def _scatter(self, weights: Tensor, *, squared: bool = False) -> Tensor:
        """`Y.T @ weights` in the data's precision, of weights (cells, k), or that of the squares of Y."""
        if self.half and squared:
            return _squared(self.by_cell).to_dense().T @ weights
        if self.half:
            return half_product(self._dense_half.T, weights)
        if self._is_dense or self.lasts or self.device.type != "cpu":
            by_gene = _squared(self.by_gene) if squared else self.by_gene
            return by_gene @ weights if self._is_dense else compressed_product(by_gene, weights)
        y, shape = cast("sp.csr_array", self.values), (self.values.shape[1], self.n_cells)
        transposed = of_parts(sp.csc_array, shape, np.square(y.data) if squared else y.data, y.indices, y.indptr)
        return torch.from_numpy(transposed @ weights.numpy())

    @property
    def _is_dense(self) -> bool:
        return isinstance(self.values, torch.Tensor)

    @lazy_property
    def _pattern_by_cell(self) -> Tensor:
        return _compressed(cast("Observed", self.observed).pattern, self.device)

    @lazy_property
    def _pattern_by_gene(self) -> Tensor:
        return _transposed(cast("Observed", self.observed).pattern, self._pattern_by_cell)

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
        """Pattern of the entries that are data, boolean (cells, genes); None: all are."""
        if self.observed is None:
            return None
        inside = self._pattern_by_cell.to_dense() != 0
        return inside if self.observed.only else ~inside

    def dense(self) -> Tensor:
        """The block as a dense (cells, genes) tensor."""
        values = self.values
        if isinstance(values, torch.Tensor):
            return values
        if self.device.type != "cpu":
            return self.by_cell.to_dense()
        dense = np.empty(values.shape, values.dtype)
        parts = (slice(start, start + ROWS_MADE_DENSE) for start in range(0, self.n_cells, ROWS_MADE_DENSE))
        deque(in_order(lambda rows: cast("sp.csr_array", take(values, rows)).toarray(out=dense[rows]), parts), maxlen=0)
        return torch.from_numpy(dense)


def _sum_observed(pattern: Tensor, values: Tensor, *, only: bool) -> Tensor:
    product = compressed_product(pattern, values.to(pattern.dtype))
    return product if only else torch.sub(column_sums(values).to(pattern.dtype), product, out=product)


def column_sums(values: Tensor) -> Tensor:
    """Sum over rows, (columns,) in float64, of short sums in the values' precision: as good, and ten times as fast."""
    return torch.stack([part.sum(0) for part in values.split(ROWS_PER_SUM)]).sum(0, dtype=torch.float64)


def _squared(matrix: Tensor) -> Tensor:
    if matrix.layout == torch.strided:
        return matrix.square()
    return csr_tensor(matrix.crow_indices(), matrix.col_indices(), matrix.values().square(), tuple(matrix.shape))


def _parts(matrix: Tensor) -> list[Tensor]:
    """The tensors that hold a matrix."""
    if matrix.layout == torch.strided:
        return [matrix]
    return [matrix.crow_indices(), matrix.col_indices(), matrix.values()]


def _compressed(matrix: sp.csr_array, device: torch.device) -> Tensor:
    """A compressed matrix on the device."""
    index_dtype = np.int32 if matrix.nnz < np.iinfo(np.int32).max else np.int64
    indices = (part.astype(index_dtype, copy=False) for part in (matrix.indptr, matrix.indices))
    crow, col, values = (to_device(part, device) for part in (*indices, matrix.data))
    return csr_tensor(crow, col, values, matrix.shape)


def _transposed(matrix: sp.csr_array, there: Tensor) -> Tensor:
    """A compressed matrix transposed, made on the device where it is `there` already: half as much is copied."""
    if there.device.type == "cpu":
        return _compressed(matrix.tocsc().T, there.device)
    return transposed(there)


def transposed(matrix: Tensor) -> Tensor:
    """A compressed matrix by its columns, made so that a GPU is not waited for; entries of a column by their row."""
    (n_rows, n_columns), (crow, col, values) = matrix.shape, _parts(matrix)
    rows, columns = (torch.arange(size, dtype=col.dtype, device=col.device) for size in (n_rows, n_columns + 1))
    sorted_col, order = torch.sort(col, stable=True)
    row = torch.repeat_interleave(rows, crow.diff(), output_size=len(col))
    first = torch.searchsorted(sorted_col, columns).to(col.dtype)
    return csr_tensor(first, row.index_select(0, order), values.index_select(0, order), (n_columns, n_rows))


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Compressed matrix of parts that are not checked, without torch's note that such matrices are new."""
    _hear_the_warning()
    return torch.sparse_csr_tensor(crow, col, values, size=tuple(shape), device=values.device, check_invariants=False)


@functools.cache
def _hear_the_warning() -> None:
    """Make one compressed matrix: torch warns of the first in a process, and filters are not safe among threads."""
    with _FIRST, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        torch.eye(1, dtype=torch.float32, device="cpu").to_sparse_csr()
