"""Counts that are log-normalised as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .canonical import of_parts
from .checks import check_finite, check_not_negative
from .kind import kind_of
from .memory import columns
from .wrapped import WrappedSource

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

    from .kind import ValueKind
    from .source import CellSource
    from .summary import Summary


@dataclass(frozen=True, eq=False)
class LogNormalised(WrappedSource):
    """`log1p(factor_i y_ij)` of another source, in float32: zeros stay zeros, and indices are shared.

    Factors stay those that all genes and all entries gave, also of some genes and less the entries of a mask.
    """

    factor: np.ndarray  # (n,) float32

    @property
    def dtype(self) -> np.dtype:
        """Type of the logarithms."""
        return self.factor.dtype

    def over(self, leaf: CellSource, cells: slice | np.ndarray = slice(None)) -> LogNormalised:
        """The logarithms of some cells, whose counts `leaf` has."""
        return LogNormalised(self.source.over(leaf, cells), self.factor[cells])

    def rows(self, which: slice | np.ndarray) -> sp.csr_array | np.ndarray:
        """The logarithms of some cells."""
        return logs_of(self.source.rows(which), self.factor[which])

    def pattern(self) -> sp.csr_array:
        """Ones at the entries that a sparse source stores."""
        return self.source.pattern()


@dataclass(frozen=True, eq=False)
class Normalised:
    """Kind and totals of values before they were log-normalised."""

    kind: ValueKind  # at all genes
    totals: np.ndarray  # (n,) float32, that each cell was scaled from


def log_normalised(
    counts: CellSource,
    target: float,
    where: str,
    cells: pd.Index,
    genes: pd.Index,
    totals: np.ndarray | None = None,
    chosen: np.ndarray | None = None,
    of_logs: Summary | None = None,
) -> tuple[LogNormalised, Normalised]:
    """Counts scaled in each cell from its total to `target`, and their log1p; a cell without any stays so.

    `totals` are those of a fit, from which genes may be lost since; None takes the sums over all genes. Of the
    logarithms, those of the genes at the positions `chosen` alone. Figures of both come from one reading, or are known
    where `of_logs`, those of the logarithms, are.

    Raises
    ------
    ValueError
        A value is negative or not finite, or float32 cannot hold what scales them.
    """

    def make(rows: slice, block: sp.csr_array | np.ndarray, sums: np.ndarray) -> sp.csr_array | np.ndarray:
        with np.errstate(all="ignore"):  # what is wrong with the counts is said below
            logs = logs_of(block, factors_of(target, sums if totals is None else totals[rows]))
        return logs if chosen is None else columns(logs, chosen)

    if of_logs is None:
        of_logs = counts.summarise_with(make, counts.shape[1] if chosen is None else len(chosen))
    check_finite(counts, where, cells, genes)
    check_not_negative(counts, where, cells, genes, asked=f"normalize={target:g}")
    totals = counts.summary.cell_sums if totals is None else totals
    factors = factors_of(target, totals)
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        totals = totals.astype(np.float32)
    if target > float(limits.max) or not (np.isfinite(factors).all() and (factors >= limits.tiny).all()):
        msg = (
            f"`normalize`={target:g} is too {'large' if target > 1 else 'small'} for float32 to scale the cells of "
            f"{where} to, whose totals go from {totals.min():.4g} to {totals.max():.4g}. Pass 1e4, for example."
        )
        raise ValueError(msg)
    kept = counts if chosen is None else counts.at_genes(chosen)
    logs = LogNormalised(kept, factors)
    if of_logs is not None:
        logs.is_known(of_logs)
    return logs, Normalised(kind_of(counts.summary), totals)


def factors_of(target: float, totals: np.ndarray) -> np.ndarray:
    """Factors by which the counts of cells are multiplied, float32."""
    with np.errstate(over="ignore", under="ignore"):
        totals = totals.astype(np.float32)
        return np.divide(target, totals, out=np.ones(len(totals)), where=totals > 0).astype(np.float32)


def logs_of(block: sp.csr_array | np.ndarray, factor: np.ndarray) -> sp.csr_array | np.ndarray:
    """`log1p(factor_i y_ij)` of a block, in float32; indices are shared."""
    if isinstance(block, np.ndarray):
        scaled = np.multiply(block, factor[:, None], dtype=np.float32)
        return np.log1p(scaled, out=scaled)
    scaled = np.multiply(block.data, np.repeat(factor, np.diff(block.indptr)), dtype=np.float32)
    return of_parts(type(block), block.shape, np.log1p(scaled, out=scaled), block.indices, block.indptr)
