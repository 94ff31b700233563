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
from .canonical import of_parts
from .memory import take

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

    @lazy_property
    def by_cell(self) -> Tensor:
        """The block, (cells, genes)."""
        return self.values if isinstance(self.values, torch.Tensor) else _to_device(self.values, self.device)

    @lazy_property
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

    @lazy_property
    def known(self) -> Tensor:
        """Covariates of the cells, (cells, p) in float64; no column where there are none."""
        if self.covariates is None:
            return torch.zeros(self.n_cells, 0, dtype=torch.float64, device=self.device)
        return torch.as_tensor(self.covariates, dtype=torch.float64, device=self.device)

    def times_genes(self, weights: Scaled) -> Tensor:
        """Sum over genes: `Y @ weights`, (cells, k) in float64, of products in the data's precision."""
        return weights.times(self.by_cell @ weights.values(self._dtype))

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
        if isinstance(self.values, torch.Tensor) or self.lasts or self.device.type != "cpu":
            return (_squared(self.by_gene) if squared else self.by_gene) @ weights
        y, shape = self.values, (self.values.shape[1], self.n_cells)
        transposed = of_parts(sp.csc_array, shape, np.square(y.data) if squared else y.data, y.indices, y.indptr)
        return torch.from_numpy(transposed @ weights.numpy())

    @lazy_property
    def _pattern_by_cell(self) -> Tensor:
        return _to_device(cast("Observed", self.observed).pattern, self.device)

    @lazy_property
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
    return csr_tensor(matrix.crow_indices(), matrix.col_indices(), matrix.values().square(), tuple(matrix.shape))


def _to_device(matrix: sp.csr_array, device: torch.device) -> Tensor:
    # the data are not written to, so sharing a read-only array with torch is safe
    parts = [np.require(part, requirements="W") for part in (matrix.indptr, matrix.indices, matrix.data)]
    index_dtype = np.int32 if matrix.nnz < np.iinfo(np.int32).max else np.int64
    crow, col = (torch.from_numpy(part.astype(index_dtype, copy=False)).to(device) for part in parts[:2])
    return csr_tensor(crow, col, torch.from_numpy(parts[2]).to(device), matrix.shape)


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
