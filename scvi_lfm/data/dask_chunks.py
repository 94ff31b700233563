"""A source that is a dask array: chunks of cells are computed when cells of theirs are asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .cache import Cache
from .canonical import canonical, computable, computable_dtype
from .cluster import Cluster
from .memory import take
from .reader import SpanReader, reading
from .source import stacked

if TYPE_CHECKING:
    from collections.abc import Callable

# chunks in memory at a time, besides those that are being worked on
CHUNKS_KEPT = 3
# of a sparse array, whose chunks do not say how much they store; for the size of parts alone
SHARE_STORED = 0.1


@dataclass(frozen=True, eq=False)
class DaskSource(SpanReader):
    """Chunks of cells, sparse or dense, each computed by the thread that asks for it, or on a cluster."""

    place = "dask"
    array: Any  # dask array (n, m), in chunks of whole rows
    where: str  # in words

    @classmethod
    def of(cls, array: Any, where: str) -> DaskSource:
        """Source of a dask array; chunks that hold some of the genes are joined as they are read.

        Raises
        ------
        TypeError
            Chunks are no numpy arrays or scipy matrices.
        ValueError
            The sizes of chunks are not known.
        """
        if np.isnan(np.concatenate([np.asarray(sizes, float) for sizes in array.chunks])).any():
            place = "X" if where == "X" else where
            msg = (
                f"{where} is a dask array with chunks of unknown size. Call adata.{place}.compute_chunk_sizes() first."
            )
            raise ValueError(msg)
        if array.numblocks[1] > 1:
            array = array.rechunk({1: -1})
        source = cls(array, where)
        _check_form(array._meta, where)
        return source

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        n_cells, n_genes = self.array.shape
        return n_cells, n_genes

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return computable_dtype(self.array.dtype)

    @property
    def is_sparse(self) -> bool:
        """Whether zeros may be left out."""
        return sp.issparse(self.array._meta)

    @property
    def values_per_cell(self) -> float:
        """Number of values that a cell takes, about."""
        return self.shape[1] * (SHARE_STORED if self.is_sparse else 1)

    def span(self, start: int, stop: int) -> sp.csr_array | np.ndarray:
        """The values of consecutive cells."""
        first = int(np.searchsorted(self._borders, start, side="right")) - 1
        parts = []
        for number in range(first, len(self._borders) - 1):
            before, after = self._borders[number], self._borders[number + 1]
            if before >= stop:
                break
            inside = slice(max(start, before) - before, min(stop, after) - before)
            parts.append(take(self._chunks.get(number), inside))
        return stacked(parts) if parts else self._empty()

    @cached_property
    def _borders(self) -> list[int]:
        return [0, *np.cumsum(self.array.chunks[0]).tolist()]

    @cached_property
    def _chunks(self) -> Cache[sp.csr_array | np.ndarray]:
        return Cache(self._compute, CHUNKS_KEPT)

    def _compute(self, number: int) -> sp.csr_array | np.ndarray:
        cells = slice(self._borders[number], self._borders[number + 1])
        cluster = self.cluster
        if cluster is not None:
            return cluster.gather(self, cells)
        with reading(self.where, cells):
            # several workers ask at a time, so that threads of dask's own would only be in their way
            chunk = self.array.blocks[number, 0].compute(scheduler="synchronous")
        return self._form(chunk, cells)

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The values of some cells, by position, in any order; on a cluster no others travel."""
        if isinstance(which, slice) or len(which) == 0:
            return super().rows(which)
        cluster = self.cluster
        if cluster is None:
            return super().rows(which)
        wanted, place = np.unique(which, return_inverse=True)
        block = cluster.gather(self, wanted)
        return block if np.array_equal(wanted, which) else block[place]

    @property
    def cluster(self) -> Cluster | None:
        """Cluster that works on the chunks: the workers of the active client of dask; None: there is none."""
        client = _active_client()
        if client is None or 0 in self.shape:
            return None
        return Cluster(client, self.where, self.shape[1], self._delayed, np.array(self._borders), self._form)

    @cached_property
    def _delayed(self) -> list[Any]:
        return self.array.to_delayed()[:, 0].tolist()

    @property
    def _form(self) -> Callable[[Any, slice], sp.csr_array | np.ndarray]:
        return partial(_in_form, where=self.where, n_genes=self.shape[1], is_sparse=self.is_sparse)

    def _empty(self) -> sp.csr_array | np.ndarray:
        shape = 0, self.shape[1]
        return sp.csr_array(shape, dtype=self.dtype) if self.is_sparse else np.empty(shape, self.dtype)


def _in_form(chunk: Any, cells: slice, *, where: str, n_genes: int, is_sparse: bool) -> sp.csr_array | np.ndarray:
    """A chunk, as it was computed, in the form that sources give values in."""
    with reading(where, cells):
        expected = cells.stop - cells.start, n_genes
        if chunk.shape != expected:
            msg = f"a chunk has shape {chunk.shape}, where the dask array says {expected}"
            raise ValueError(msg)
    _check_form(chunk, f"A chunk of {where}")
    if is_sparse:
        return canonical(chunk if sp.issparse(chunk) else sp.csr_array(chunk))
    return computable(chunk.toarray() if sp.issparse(chunk) else np.asarray(chunk))


def _active_client() -> Any:
    """The client of a cluster, where there is one that may be waited for."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        client = distributed.default_client()
    except ValueError:  # there is none
        return None
    return None if client.asynchronous else client


def _check_form(chunk: object, where: str) -> None:
    if isinstance(chunk, np.ma.MaskedArray) or not (isinstance(chunk, np.ndarray) or sp.issparse(chunk)):
        msg = (
            f"{where} is a {type(chunk).__module__}.{type(chunk).__name__}; chunks must be numpy arrays or scipy's "
            "sparse matrices. Convert them, with adata.X.map_blocks(function) for example."
        )
        raise TypeError(msg)
