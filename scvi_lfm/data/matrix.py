"""Cells by genes: a source of values, with what is data of them, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from .._settings import settings
from ..linalg.half import LARGEST
from .batch import Batch
from .memory import MemorySource, take
from .transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    import scipy.sparse as sp

    from .entries import HeldOut, Observed
    from .kind import ValueKind
    from .normalised import Normalised
    from .source import CellSource
    from .summary import Summary


@dataclass(frozen=True)
class CellMatrix:
    """Cells by genes, read a block of cells at a time."""

    source: CellSource
    observed: Observed | None = None  # which entries are data; None: all. The source has no others
    held_out: HeldOut | None = None
    covariates: np.ndarray | None = None  # (n, p) float64: what is known of each cell, coded
    kind: ValueKind | None = None  # of all values
    normalised: Normalised | None = None  # what they were before they were log-normalised; None: they were not
    level: float = 0.0  # taken off the data of every block; the source has it still

    @classmethod
    def of(cls, values: sp.csr_array | np.ndarray, observed: Observed | None = None, **fields: Any) -> CellMatrix:
        """Matrix of values in memory."""
        return cls(MemorySource(values), observed, **fields)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return self.source.shape

    @property
    def summary(self) -> Summary:
        """Figures of the values of the source, the level in them."""
        return self.source.summary

    @property
    def only_stored(self) -> bool:
        """Whether entries that a sparse source does not store are no data."""
        return self.observed is not None and self.observed.only and self.source.is_sparse

    @property
    def n_covariates(self) -> int:
        """Columns of the design matrix."""
        return 0 if self.covariates is None else self.covariates.shape[1]

    @property
    def n_observed(self) -> int:
        """Number of entries that are data."""
        n_cells, n_genes = self.shape
        if self.observed is None:
            return n_cells * n_genes
        nnz = self.observed.pattern.nnz
        return nnz if self.observed.only else n_cells * n_genes - nnz

    def at_genes(self, genes: np.ndarray) -> CellMatrix:
        """The columns of some genes, by position or mask, held-out entries left behind."""
        observed = self.observed and replace(self.observed, pattern=self.observed.pattern[:, genes])
        return replace(self, source=self.source.at_genes(genes), observed=observed, held_out=None, kind=None)

    def at_cells(self, rows: np.ndarray) -> CellMatrix:
        """The rows of some cells, by position, in memory, held-out entries left behind."""
        observed = self.observed and replace(self.observed, pattern=self.observed.pattern[rows])
        known = None if self.covariates is None else self.covariates[rows]
        source = MemorySource(self.source.rows(rows))
        return replace(self, source=source, observed=observed, held_out=None, covariates=known, normalised=None)

    def over(self, leaf: CellSource, cells: np.ndarray | slice = slice(None)) -> CellMatrix:
        """Matrix of some cells, whose values `leaf` has; what only all cells tell is left behind."""
        source, observed = self.source.over(leaf, cells), self.observed
        if observed is not None:
            # what a source stores is asked of it, where its values are
            pattern = source.pattern() if self.only_stored else cast("sp.csr_array", take(observed.pattern, cells))
            observed = replace(observed, pattern=pattern)
        known = None if self.covariates is None else self.covariates[cells]
        return CellMatrix(source, observed, covariates=known, level=self.level)

    def less(self, constant: float) -> CellMatrix:
        """Matrix of the data, those held out too, less a constant."""
        held = self.held_out
        held = None if held is None else replace(held, y=held.y - constant)
        return replace(self, level=self.level + constant, held_out=held)

    def row_sums(self) -> np.ndarray:
        """Sum of the data of each cell, less the level of each, (n,)."""
        if not self.level:
            return self.summary.cell_sums
        count = np.full(self.shape[0], self.shape[1])
        if self.observed is not None:
            in_pattern = np.diff(self.observed.pattern.indptr)
            count = in_pattern if self.observed.only else count - in_pattern
        return self.summary.cell_sums - self.level * count

    def stored(self) -> sp.csr_array | np.ndarray:
        """Array of all values in memory, the level in them."""
        return self.source.whole()

    def mapped(self, function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> CellMatrix:
        """The matrix, in memory, of what `function` makes of stored values, in float32, of their cells and their genes.

        Zeros that are not stored stay so.
        """
        block = self._block(slice(None), self.observed, np.float32)
        if isinstance(block, np.ndarray):
            values = function(block, *np.ogrid[: len(block), : block.shape[1]]).astype(np.float32, copy=False)
            return CellMatrix.of(values, covariates=self.covariates)
        cell = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        data = function(block.data, cell, block.indices).astype(np.float32, copy=False)
        values = type(block)((data, block.indices, block.indptr), shape=block.shape, copy=False)
        return CellMatrix.of(values, covariates=self.covariates)

    def batch(
        self,
        rows: np.ndarray | slice | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        lasts: bool = False,
    ) -> Batch:
        """Cells `rows` (all if None) as a block on `device`, with which many products are to come if it `lasts`."""
        rows = slice(None) if rows is None else rows
        known = None if self.covariates is None else self.covariates[rows]
        numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        observed = None if self.observed is None else self.observed.rows(rows, numpy_dtype)
        block = self._block(rows, observed, numpy_dtype)
        values = to_device(block, device) if isinstance(block, np.ndarray) else block
        return Batch(values, device, observed, known, lasts, half=device.type != "cpu" and _suits_half(block))

    def _block(
        self, rows: np.ndarray | slice, observed: Observed | None, dtype: type[np.floating]
    ) -> sp.csr_array | np.ndarray:
        """Block of cells less the level, in the precision asked for; `observed` says what is data of them."""
        block = self.source.rows(rows)
        return _less(block, self.level, observed, dtype) if self.level else _cast(block, dtype)


def _suits_half(block: sp.csr_array | np.ndarray) -> bool:
    """Whether a sparse block has as many values as settings ask for, and none that half precision cannot hold."""
    least = settings.half_density
    if least is None or isinstance(block, np.ndarray) or block.dtype != np.float32:
        return False
    enough = block.nnz >= least * block.shape[0] * block.shape[1]
    return enough and bool(np.abs(block.data).max(initial=0) <= LARGEST)


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
