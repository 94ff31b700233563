"""What a matrix must be before any work is done, and the words for when it is not."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._validate import check_unique
from .summary import stored_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from .source import CellSource


LARGEST_COUNT = 2**24


def check_names(adata: AnnData) -> None:
    """Raise unless cell and gene names are unique strings."""
    for axis, names in (("obs", adata.obs_names), ("var", adata.var_names)):
        check_unique(names, axis)
        found = names.categories.inferred_type if isinstance(names, pd.CategoricalIndex) else names.inferred_type
        if found not in {"string", "empty"}:
            msg = (
                f"{axis}_names are not strings (found {found}): "
                f"call adata.{axis}_names = adata.{axis}_names.astype(str) first."
            )
            raise TypeError(msg)


def check_dtype(values: Any, where: str) -> None:
    """Raise unless `values` is a numeric matrix in memory."""
    if not (sp.issparse(values) or isinstance(values, np.ndarray)):
        msg = (
            f"{where} is a {type(values).__module__}.{type(values).__name__}; what is read are numpy arrays, scipy's "
            "sparse matrices, backed or lazily read files of anndata, and dask arrays of them. Convert it, with "
            f"adata.{where} = scipy.sparse.csr_array(values) for example."
        )
        raise TypeError(msg)
    if isinstance(values, np.ma.MaskedArray):
        msg = f"{where} is a masked array, and its mask would be lost. Fill it first, with .filled(0) for example."
        raise TypeError(msg)
    if values.dtype.kind not in "fiub":
        msg = f"{where} has dtype {values.dtype}, which is not a real number. Convert it with .astype('float32')."
        raise TypeError(msg)


def check_positions(values: sp.spmatrix | sp.sparray, where: str) -> None:
    """Raise if a compressed matrix names rows or columns that it does not have: reading them would end the process."""
    if values.format not in {"csr", "csc"}:
        return
    # a wrapper of its own: the check may change what it is made of
    kind = sp.csr_array if values.format == "csr" else sp.csc_array
    try:
        kind((values.data, values.indices, values.indptr), shape=values.shape, copy=False).check_format()
    except ValueError as error:
        msg = (
            f"{where} is a sparse matrix of {values.shape[0]:,} x {values.shape[1]:,} that is damaged ({error}). "
            "Read or make it again; scipy's check_format() tells whether one is sound."
        )
        raise ValueError(msg) from None


def check_finite(source: CellSource, where: str, cells: pd.Index, genes: pd.Index) -> None:
    """Raise if a value is NaN, infinite or beyond float32, naming the first cell and gene."""
    found, largest = source.summary, float(np.finfo(np.float32).max)
    # a NaN or an infinity is among the extremes; integers are none, however large
    if source.dtype.kind != "f" or (abs(found.stored_minimum) <= largest and abs(found.stored_maximum) <= largest):
        return
    number, first = _first_bad(source, lambda stored: ~(np.abs(stored) <= largest), cells, genes)
    msg = (
        f"{where} holds {number} value(s) that are NaN, infinite or beyond the range of float32; the first is {first}. "
        "Remove or replace them first."
    )
    if np.isnan(found.stored_minimum):
        msg += (
            " If they are entries that are missing, lfm.tl.fit can do without them: store the others alone in a sparse "
            "matrix and pass observed='stored', or put 0 in their place and pass held_out= with a mask of them."
        )
    raise ValueError(msg)


def check_not_negative(source: CellSource, where: str, cells: pd.Index, genes: pd.Index, *, asked: str) -> None:
    """Raise if a value is negative, naming the first; `asked` is the argument that is for counts."""
    if source.summary.stored_minimum >= 0:
        return
    number, first = _first_bad(source, lambda stored: stored < 0, cells, genes)
    msg = (
        f"{asked} takes logarithms of counts, but {where} holds {number:,} value(s) that are negative; the first is "
        f"{first}. Pass the layer that holds counts."
    )
    raise ValueError(msg)


def check_counts(
    source: CellSource,
    where: str,
    cells: pd.Index,
    genes: pd.Index,
    *,
    asked: str,
    otherwise: str,
    maximum: int | None = None,
    levels: bool = False,
) -> None:
    """Raise unless every value is a count that float32 can hold, at most `maximum`, naming the first that is not.

    `asked` is the argument that is for counts, or for `levels`, and `otherwise` what to pass for values that are none.
    """
    found = source.summary
    is_bad: Callable[[np.ndarray], np.ndarray]
    if found.n_whole < found.n_present:
        is_bad, kind = (lambda stored: stored != np.rint(stored)), "not whole numbers"
        mend = f"Pass the layer that holds raw counts, or {otherwise} for log values."
    elif found.stored_minimum < 0:
        is_bad, kind = (lambda stored: stored < 0), "negative"
        mend = f"Counts cannot be; pass the layer that holds raw counts, or {otherwise}."
    elif maximum is not None and found.stored_maximum > maximum:
        is_bad, kind = (lambda stored: stored > maximum), f"above {maximum}"
        place = f"adata.{where}"
        mend = f"Binarise them first: {place} = ({place} > 0).astype('float32'), in memory (adata.to_memory())."
    elif found.stored_maximum > LARGEST_COUNT:
        is_bad, kind = (lambda stored: stored > LARGEST_COUNT), "above 2^24, beyond which float32 skips whole numbers"
        mend = "Look at them: they are no molecule counts. Divide them, or leave those genes out with mask_var."
    else:
        return
    number, first = _first_bad(source, is_bad, cells, genes)
    what = "levels" if levels else "zeros and ones" if maximum == 1 else "counts"
    if levels:
        mend = f"Recode them as whole numbers from zero on (half stars times two), or pass {otherwise}."
    msg = (
        f"{asked} is for {what}, but {where} holds "
        f"{number:,} value(s) ({number / found.n_stored:.1%} of those stored) that are {kind}; the first is {first}. "
        f"{mend}"
    )
    raise ValueError(msg)


def farthest_out(source: CellSource, cells: pd.Index, genes: pd.Index) -> str:
    """Words for where the largest absolute value is, by another reading: for errors alone."""
    found = source.summary
    largest = max(-found.stored_minimum, found.stored_maximum)
    _, first = _first_bad(source, lambda stored: np.abs(stored) >= largest, cells, genes)
    return first.partition(" in ")[2]


def _first_bad(
    source: CellSource, is_bad: Callable[[np.ndarray], np.ndarray], cells: pd.Index, genes: pd.Index
) -> tuple[int, str]:
    """Number of bad stored values, and words for the first of them, found by another reading: for errors alone."""
    number, first, start = 0, "", 0
    for size, count, bad in source.each_part(partial(_bad_in, is_bad)):
        if bad is not None and not number:
            value, cell, gene = bad
            first = f"{value} in cell {cells[start + cell]!r}, gene {genes[gene]!r}"
        number, start = number + count, start + size
    return number, first


def _bad_in(
    is_bad: Callable[[np.ndarray], np.ndarray], block: sp.csr_array | np.ndarray
) -> tuple[int, int, tuple[object, int, int] | None]:
    """Number of cells of a block, that of its bad values, and the first of these: the value, its cell and its gene."""
    stored = stored_values(block)
    bad = np.flatnonzero(is_bad(stored).ravel())
    first = (stored.ravel()[bad[0]], *_place(block, int(bad[0]))) if len(bad) else None
    return block.shape[0], len(bad), first


def _place(values: sp.csr_array | np.ndarray, position: int) -> tuple[int, int]:
    """Row and column of a position among the stored values."""
    if isinstance(values, np.ndarray):
        return divmod(position, values.shape[1])
    return int(np.searchsorted(values.indptr, position, side="right")) - 1, int(values.indices[position])
