"""Counts that are log-normalised as they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .checks import check_finite, check_not_negative
from .memory import of_parts
from .source import CellSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class LogNormalised(CellSource):
    """`log1p(factor_i y_ij)` of another source, in float32: zeros stay zeros, and indices are shared."""

    counts: CellSource
    factor: np.ndarray  # (n,) float32

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return self.counts.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the logarithms."""
        return self.factor.dtype

    @property
    def is_sparse(self) -> bool:
        """Whether zeros may be left out."""
        return self.counts.is_sparse

    @property
    def n_stored(self) -> int:
        """Number of entries that are stored."""
        return self.counts.n_stored

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The logarithms of some cells."""
        return _logs(self.counts.rows(which), self.factor[which])

    def parts(self) -> Iterator[tuple[slice, sp.csr_array | np.ndarray]]:
        """Every cell once, as the counts come."""
        for cells, block in self.counts.parts():
            yield cells, _logs(block, self.factor[cells])

    def at_genes(self, genes: np.ndarray) -> LogNormalised:
        """The columns of some genes; totals stay those over all."""
        return replace(self, counts=self.counts.at_genes(genes))

    def without(self, mask: sp.csr_array) -> LogNormalised:
        """The same less the entries of a mask; totals stay those of all."""
        return replace(self, counts=self.counts.without(mask))

    def pattern(self) -> sp.csr_array:
        """Ones at the entries that a sparse source stores."""
        return self.counts.pattern()


def log_normalised(counts: CellSource, total: float, where: str, cells: pd.Index, genes: pd.Index) -> LogNormalised:
    """Counts scaled in each cell to the sum `total` over all genes, and their log1p; a cell without any stays so.

    Raises
    ------
    ValueError
        A value is negative or not finite, or float32 cannot hold what scales them.
    """
    check_finite(counts, where, cells, genes)
    check_not_negative(counts, where, cells, genes, asked=f"normalize={total:g}")
    sums = counts.summary.cell_sums
    filled = sums > 0
    with np.errstate(over="ignore", under="ignore"):
        factor = np.divide(total, sums, out=np.ones(len(sums)), where=filled).astype(np.float32)
        largest = np.float32(total)
    if not (np.isfinite(factor).all() and np.isfinite(largest) and (factor[filled] > np.finfo(np.float32).tiny).all()):
        msg = (
            f"`normalize`={total:g} is too {'large' if total > 1 else 'small'} for float32 to scale the cells of "
            f"{where} to, whose totals go from {sums.min():.4g} to {sums.max():.4g}. Pass 1e4, for example."
        )
        raise ValueError(msg)
    return LogNormalised(counts, factor)


def _logs(block: sp.csr_array | np.ndarray, factor: np.ndarray) -> sp.csr_array | np.ndarray:
    if isinstance(block, np.ndarray):
        scaled = np.multiply(block, factor[:, None], dtype=np.float32)
        return np.log1p(scaled, out=scaled)
    scaled = np.multiply(block.data, np.repeat(factor, np.diff(block.indptr)), dtype=np.float32)
    return of_parts(type(block), block.shape, np.log1p(scaled, out=scaled), block.indices, block.indptr)
