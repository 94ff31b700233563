"""Sources whose values stay in a file, HDF5 or zarr, of which the cells asked for are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from .canonical import computable, computable_dtype, in_order_of_genes, of_parts
from .compressed import column_of
from .reader import SpanReader, reading


@dataclass(frozen=True, eq=False)
class SparseFile(SpanReader):
    """Values compressed by rows in a file, with the positions where rows begin in memory."""

    is_sparse = True
    knows_n_stored = True
    values: Any  # of an HDF5 or zarr file: stored values,
    indices: Any  # and their genes
    starts: np.ndarray  # (n + 1,) int64: where the values of each cell begin
    n_genes: int
    where: str  # in words

    @classmethod
    def of(cls, dataset: Any, where: str) -> SparseFile:
        """The rows of a sparse dataset of anndata.

        Raises
        ------
        OSError
            They cannot be read, or do not lie where the file says.
        """
        with reading(where):
            group, (n_cells, n_genes) = dataset.group, dataset.shape
            values, indices = column_of(group["data"]), column_of(group["indices"])
            starts = np.asarray(group["indptr"][...]).astype(np.int64)
        n_stored = min(values.shape[0], indices.shape[0])
        whole = len(starts) == n_cells + 1 and starts[0] == 0 and (np.diff(starts) >= 0).all()
        if not whole or starts[-1] > n_stored:
            msg = (
                f"The file of {where} is damaged: the rows that it speaks of are not those that it holds ({n_cells:,} "
                f"cells, {n_stored:,} values stored). Write it anew."
            )
            raise OSError(msg)
        return cls(values, indices, starts, n_genes, where)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return len(self.starts) - 1, self.n_genes

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return computable_dtype(self.values.dtype)

    @property
    def n_stored(self) -> int:
        """Number of entries that are stored."""
        return int(self.starts[-1])

    def span(self, start: int, stop: int) -> sp.csr_array:
        """The values of consecutive cells."""
        first, last = int(self.starts[start]), int(self.starts[stop])
        with reading(self.where, slice(start, stop)):
            values = np.asarray(self.values[first:last])
            genes = np.asarray(self.indices[first:last])
            if len(genes) and not 0 <= genes.min() <= genes.max() < self.n_genes:
                msg = f"it names genes that there are not, up to number {genes.max()}"
                raise ValueError(msg)
        fits = self.n_genes <= np.iinfo(np.int32).max and last - first <= np.iinfo(np.int32).max
        index = np.int32 if fits else np.int64
        starts = (self.starts[start : stop + 1] - first).astype(index)
        parts = computable(values), genes.astype(index, copy=False), starts
        return in_order_of_genes(of_parts(sp.csr_array, (stop - start, self.n_genes), *parts))


@dataclass(frozen=True, eq=False)
class DenseFile(SpanReader):
    """A dense array in a file."""

    is_sparse = False
    values: Any  # of an HDF5 or zarr file
    where: str

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        n_cells, n_genes = self.values.shape
        return n_cells, n_genes

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return computable_dtype(self.values.dtype)

    def span(self, start: int, stop: int) -> np.ndarray:
        """The values of consecutive cells."""
        with reading(self.where, slice(start, stop)):
            return computable(np.asarray(self.values[start:stop]))
