"""What kind of values a matrix holds: a fit remembers it, and whatever is read later is compared with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp

    from .source import CellSource
    from .summary import Summary

# of fewer values other than zero, or of fewer genes, chance makes what it likes
ENOUGH_VALUES, ENOUGH_FOR_SIGNS, ENOUGH_GENES = 10, 100, 100
# in logs and in counts times a constant fewer are whole, in half stars and expected counts many more
HARDLY_ANY = 0.05
# how far below zero values may lie by chance where the fit's were all above it, in ranges of the fit's
BELOW = 0.1
THREEFOLD = 3.0
# of counts that many add up to, chance hides no more than a few
ENOUGH_EXPECTED = 100.0
# counts spread by the root of their mean at least, and where all are above this there is no smaller one
ALL_LARGE = 100.0
# no log of a count reaches it: that of a million is 13.8, or 19.9 to base 2
HIGHEST_LOG = 20.0
# values look unlogged whose largest is above the first and more than the second times the mean of those above zero:
# logs that reach 5 stay below 7 times it, square roots of counts below 15, and counts on any scale reach 48 to 150, or
# 9 to 40 where rare genes were left out
UNLOGGED = ((HIGHEST_LOG, 20.0), (100.0, 10.0))
# scaling to unit variance is exact but for rounding; scanpy's clipping at 10 takes a part of it from rare genes
SCALED_FROM, ROUNDING, SHARE_SCALED, GENES_LOOKED_AT = 10.0, 1e-3, 0.2, 200
# at a time, wherever the values lie, so that sums are the same to the bit
CELLS_LOOKED_AT = 1024
# of the first cells, in how many a value is a multiple of the cell's least, and how many are no multiple of all's
UNIT_CELLS, FEW_UNITS, IN_UNITS = 64, 5, 0.9
# in expression, about as many of a cell's values are the least one; of a user's ratings, few are
LIKE_EXPRESSION = 0.4
RECORDED = ("whole", "minimum", "maximum", "mean_total")
# before the names of what was read, where the fit log-normalised it
AS_READ = "read_"


@dataclass(frozen=True)
class ValueKind:
    """Figures of the values of some genes. Zeros that are not stored are values, unless stored entries alone are."""

    whole: float  # share of those other than zero that are whole numbers; 1 where there are none
    minimum: float
    maximum: float
    mean_total: float  # mean over cells of the sum over genes
    n_present: int = 0  # number of those other than zero
    mean_present: float = 0.0  # their mean
    n_cells: int = 0

    @classmethod
    def of_record(cls, record: Mapping[str, Any], prefix: str = "") -> ValueKind:
        """Take up what a fit stored."""
        whole, minimum, maximum, mean_total = (float(record[prefix + name]) for name in RECORDED)
        return cls(whole, minimum, maximum, mean_total)

    def record(self, prefix: str = "") -> dict[str, float]:
        """Record of the figures, as a fit stores it."""
        return {prefix + name: getattr(self, name) for name in RECORDED}

    @property
    def is_whole(self) -> bool:
        """Whether every value is a whole number."""
        return self.whole == 1

    @property
    def may_be_counts(self) -> bool:
        """Whether they are whole numbers that counts can be: those that lie closer than counts do share a level."""
        closest = math.sqrt(self.minimum) / 2 if self.minimum > ALL_LARGE else 0.0
        return self.is_whole and self.minimum >= 0 and self.maximum - self.minimum >= closest

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        return max(-self.minimum, self.maximum)

    @property
    def span(self) -> str:
        """Words for the range."""
        return f"from {self.minimum:.4g} to {self.maximum:.4g}"


class ValuesWarning(UserWarning):
    """Values that are fitted with a likelihood that is not made for them.

    Attributes
    ----------
    looks
        What they look like, as :func:`looks_like` says, or `"logged"`.
    seen
        A sentence with what was found.
    mend
        The calls that mend it.
    """

    def __init__(self, looks: str, seen: str, mend: str) -> None:
        super().__init__(looks, seen, mend)
        self.looks, self.seen, self.mend = looks, seen, mend

    def __str__(self) -> str:
        return f"{self.seen} {self.mend}"


def kind_of(found: Summary, *, stored_only: bool = False) -> ValueKind:
    """The figures that tell the kind of all values.

    With `stored_only`, entries that a sparse matrix does not store are no values.
    """
    low, high = (found.stored_minimum, found.stored_maximum) if stored_only else (found.minimum, found.maximum)
    return ValueKind(
        whole=found.n_whole / found.n_present if found.n_present else 1.0,
        minimum=float(low),
        maximum=float(high),
        mean_total=found.total / max(found.shape[0], 1),
        n_present=found.n_present,
        mean_present=found.total / max(found.n_present, 1),
        n_cells=found.shape[0],
    )


def other_kind(found: ValueKind, fitted: ValueKind, *, ratings: bool = False) -> tuple[str, str] | None:
    """Words for what is found and what was fitted, where no part of values like the latter could be the former.

    Of `ratings`, which are few in a row, the whole ones and those with one sign may be all that there are.
    """
    enough = found.n_present >= ENOUGH_VALUES
    lowest = -BELOW * (fitted.maximum - fitted.minimum) if fitted.minimum > 0 else 0.0
    if fitted.minimum >= 0 and found.minimum < lowest:
        return "values that are negative", "none"
    # values with signs are not zero by chance, least of all the smallest of them
    if fitted.minimum < 0 and found.minimum == 0 and not (ratings or fitted.is_whole):
        return ("no negative value", "some that are") if found.n_present >= ENOUGH_FOR_SIGNS else None
    if ratings or not enough:
        return None
    if fitted.whole <= HARDLY_ANY and found.is_whole:
        return "whole numbers", "values that are not whole"
    if fitted.is_whole and found.whole <= HARDLY_ANY:
        return "values that are not whole numbers", "whole numbers"
    return None


def other_scale(
    found: ValueKind, fitted: ValueKind, expected: np.ndarray, *, counts: bool = False, ratings: bool = False
) -> str | None:
    """Words for what differs threefold, where the kind is the same.

    `expected` holds what the fit expects of each gene, (genes read,), as the mean over the cells read.
    The largest of counts may be a burst in one cell, and the ratings of a few may all be low.
    """
    if not counts and fitted.largest and found.largest > THREEFOLD * fitted.largest:
        return f"the largest is {found.largest:.4g}, where the fit read no more than {fitted.largest:.4g}"
    if ratings or fitted.minimum < 0 or len(expected) < ENOUGH_GENES:
        return None
    total, top = float(expected.sum()), float(expected.max())
    if found.n_present < ENOUGH_VALUES and not ENOUGH_EXPECTED <= total * found.n_cells < math.inf:
        return None
    if not counts and THREEFOLD * found.maximum < top:
        return f"the largest is {found.maximum:.4g}, where the fit expects a mean of {top:.4g} of one gene"
    if 0 < total < math.inf and not 1 / THREEFOLD <= found.mean_total / total <= THREEFOLD:
        return f"those of a cell add up to {found.mean_total:,.4g} on average, where the fit expects {total:,.4g}"
    return None


def looks_like(source: CellSource, kind: ValueKind) -> str | None:
    """Likeness of values to such as a Normal is not made for: `"counts"`, `"scaled"` or `"unlogged"`; None: to none."""
    if kind.is_whole:
        return "counts" if kind.may_be_counts or kind.minimum < 0 else None
    if (kind.minimum < 0 or kind.maximum >= SCALED_FROM) and share_scaled(source) >= SHARE_SCALED:
        return "scaled"
    above = any(kind.maximum > max(least, times * kind.mean_present) for least, times in UNLOGGED)
    # values around a level add up alike too, and none of them is zero
    above = above or (kind.minimum == 0 and (_add_up_alike(source.summary.cell_sums) or in_units_of_cells(source)))
    return "unlogged" if kind.minimum >= 0 and above else None


def _add_up_alike(totals: np.ndarray) -> bool:
    """Whether the values of all cells that have some add up to the same, as counts scaled to a total do."""
    some = totals[totals > 0]
    return len(some) > 1 and bool(np.ptp(some) <= ROUNDING * some.max())


def in_units_of_cells(source: CellSource, undone: Callable[[np.ndarray], np.ndarray] = np.asarray) -> bool:
    """Whether a cell's values are multiples of its least, another in each: so are counts over totals, of any genes.

    `undone` is what undoes a transformation of the values. A few cells tell.
    """
    units, shares = [], []
    block = source.rows(np.arange(min(UNIT_CELLS, source.shape[0])))
    for row in block if isinstance(block, np.ndarray) else np.split(block.data, block.indptr[1:-1]):
        values = undone(row[row > 0].astype(np.float64))
        if len(values) < ENOUGH_VALUES:
            continue
        times = values / values.min()
        others = times[times > 1 + ROUNDING]
        if len(others) >= FEW_UNITS:
            units.append(values.min())
            shares.append(np.mean(np.abs(others - np.rint(others)) < ROUNDING * others))
    if len(units) < FEW_UNITS or np.median(shares) < IN_UNITS:
        return False
    apart = np.array(units) / min(units)
    # half stars are multiples too, of the same in every cell
    return bool(np.mean(np.abs(apart - np.rint(apart)) > ROUNDING * apart) > 1 - IN_UNITS)


def looks_logged(kind: ValueKind, totals: np.ndarray | None = None) -> bool:
    """Whether values that are to be normalised look like logarithms already: no larger, and hardly any whole.

    Those of which the cells' `totals` are alike, (n,), have been normalised, and no logarithms were taken.
    """
    like = kind.minimum >= 0 and kind.maximum <= HIGHEST_LOG and kind.whole <= HARDLY_ANY
    return like and (totals is None or not _add_up_alike(totals))


def share_scaled(source: CellSource) -> float:
    """Share of the genes that vary, of some looked at, that have unit variance."""
    n_cells, n_genes = source.shape
    genes = np.unique(np.linspace(0, n_genes - 1, min(n_genes, GENES_LOOKED_AT)).astype(int))
    sums, squares = np.zeros(len(genes)), np.zeros(len(genes))
    for part_sums, part_squares in source.each_part(partial(_sums, genes), CELLS_LOOKED_AT):
        sums += part_sums
        squares += part_squares
    variance = squares / n_cells - np.square(sums / n_cells)
    varies = variance > ROUNDING
    # divided by the number of cells, or by one less
    near = np.minimum(np.abs(variance - 1), np.abs(variance * n_cells / max(n_cells - 1, 1) - 1)) < ROUNDING
    return float(near[varies].mean()) if varies.any() else 0.0


def _sums(genes: np.ndarray, block: sp.csr_array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over cells of the values of some genes, and of their squares."""
    part = block[:, genes]
    part = (part if isinstance(part, np.ndarray) else part.toarray()).astype(np.float64)
    return part.sum(0), np.square(part).sum(0)


def looks_like_expression(source: CellSource) -> bool:
    """Whether, in the median cell with enough stored values, many of them are the least one."""
    if not source.is_sparse or source.summary.stored_minimum <= 0:
        return False
    share = np.concatenate(list(source.each_part(_shares_of_least)))
    return len(share) > 0 and bool(np.median(share) > LIKE_EXPRESSION)


def _shares_of_least(block: sp.csr_array | np.ndarray) -> np.ndarray:
    """Share of the stored values that are the least one, for each cell with enough of them."""
    block = cast("sp.csr_array", block)
    sizes = np.diff(block.indptr)
    filled, enough = np.flatnonzero(sizes), sizes >= ENOUGH_VALUES
    if not enough.any():
        return np.empty(0)
    least = np.minimum.reduceat(block.data, block.indptr[filled])
    of_value = np.repeat(np.arange(len(sizes)), sizes)
    are_least = block.data == np.repeat(least, sizes[filled])
    return np.bincount(of_value, weights=are_least, minlength=len(sizes))[enough] / sizes[enough]


def log_base(uns: Mapping[str, Any], kind: ValueKind) -> float | None:
    """Base of log1p values, as :func:`scanpy.pp.log1p` left it in `uns` at its last call; None if they are no logs."""
    note = uns.get("log1p")
    noted = note.get("base") if isinstance(note, Mapping) else None
    base = float(noted) if isinstance(noted, int | float | np.number) and 1 < noted < math.inf else math.e
    return base if kind.minimum >= 0 and kind.maximum * math.log(base) <= HIGHEST_LOG else None
