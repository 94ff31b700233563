"""What a matrix must be before any work is done, and the words for when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._validate import check_unique

if TYPE_CHECKING:
    from anndata import AnnData

    from ._kind import ValueKind


LARGEST_COUNT = 2**24


def stored_values(values: sp.csr_array | np.ndarray) -> np.ndarray:
    """The values held in memory: all of a dense matrix, the stored ones of a sparse one."""
    return values if isinstance(values, np.ndarray) else values.data


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
            f"{where} is a {type(values).__module__}.{type(values).__name__}; this version reads matrices in memory. "
            "Call adata = adata.to_memory() first."
        )
        raise TypeError(msg)
    if isinstance(values, np.ma.MaskedArray):
        msg = f"{where} is a masked array, and its mask would be lost. Fill it first, with .filled(0) for example."
        raise TypeError(msg)
    if values.dtype.kind not in "fiub":
        msg = f"{where} has dtype {values.dtype}, which is not a real number. Convert it with .astype('float32')."
        raise TypeError(msg)


def check_finite(
    values: sp.csr_array | np.ndarray, kind: ValueKind, where: str, cells: pd.Index, genes: pd.Index
) -> None:
    """Raise if a value is NaN, infinite or beyond float32, naming the first cell and gene."""
    stored = stored_values(values)
    if stored.dtype.kind != "f" or stored.size == 0:
        return
    largest = float(np.finfo(np.float32).max)
    # a NaN or an infinity is among the extremes
    if abs(kind.minimum) <= largest and abs(kind.maximum) <= largest:
        return
    bad = ~(np.abs(stored) <= largest)
    position = int(np.flatnonzero(bad.ravel())[0])
    cell, gene = _place(values, position)
    what = "NaN, infinite or beyond the range of float32"
    msg = (
        f"{where} holds {int(bad.sum())} value(s) that are {what}; the first is {stored.ravel()[position]} "
        f"in cell {cells[cell]!r}, gene {genes[gene]!r}. Remove or replace them first."
    )
    if np.isnan(stored).any():
        msg += (
            " If they are entries that are missing, lfm.tl.fit can do without them: store the others alone in a sparse "
            "matrix and pass observed='stored', or put 0 in their place and pass held_out= with a mask of them."
        )
    raise ValueError(msg)


def is_constant(values: sp.csr_array | np.ndarray) -> bool:
    """Whether every value is the same."""
    stored = stored_values(values)
    if stored.size == 0:
        return True
    low, high = stored.min(), stored.max()
    full = stored.size == values.shape[0] * values.shape[1]
    return bool(low == high and (full or low == 0))


def describe_empty(values: sp.csr_array | np.ndarray) -> tuple[int, int]:
    """Number of cells and of genes that hold no value but zero."""
    if isinstance(values, np.ndarray):
        present = values != 0
        return int((~present.any(axis=1)).sum()), int((~present.any(axis=0)).sum())
    if not values.data.all():
        values = values.copy()
        values.eliminate_zeros()
    seen = np.zeros(values.shape[1], dtype=bool)
    seen[values.indices] = True
    return int((np.diff(values.indptr) == 0).sum()), int((~seen).sum())


def check_counts(
    values: sp.csr_array | np.ndarray,
    where: str,
    cells: pd.Index,
    genes: pd.Index,
    *,
    asked: str,
    otherwise: str,
    maximum: int | None = None,
) -> None:
    """Raise unless every value is a count that float32 can hold, at most `maximum`, naming the first that is not.

    `asked` is the argument that is for counts, and `otherwise` what to pass for values that are none.
    """
    stored = stored_values(values)
    if stored.size == 0 or stored.dtype.kind == "b":
        return
    bad = stored != np.rint(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, dtype=bool)
    kind, mend = "not whole numbers", f"Pass the layer that holds raw counts, or {otherwise} for log values."
    if not bad.any():
        bad, kind = stored < 0, "negative"
        mend = f"Counts cannot be; pass the layer that holds raw counts, or {otherwise}."
    if not bad.any() and maximum is not None:
        bad, kind = stored > maximum, f"above {maximum}"
        mend = "Binarise them first: adata.X = (adata.X > 0).astype('float32')."
    if not bad.any():
        bad, kind = stored > LARGEST_COUNT, "above 2^24, beyond which float32 skips whole numbers"
        mend = "Look at them: they are no molecule counts. Divide them, or leave those genes out with mask_var."
    if not bad.any():
        return
    position = int(np.flatnonzero(bad.ravel())[0])
    cell, gene = _place(values, position)
    msg = (
        f"{asked} is for {'zeros and ones' if maximum == 1 else 'counts'}, but {where} holds "
        f"{int(bad.sum()):,} value(s) ({bad.mean():.1%} of those stored) that are {kind}; the first is "
        f"{stored.ravel()[position]} in cell {cells[cell]!r}, gene {genes[gene]!r}. {mend}"
    )
    raise ValueError(msg)


def _place(values: sp.csr_array | np.ndarray, position: int) -> tuple[int, int]:
    """Row and column of a position among the stored values."""
    if isinstance(values, np.ndarray):
        return divmod(position, values.shape[1])
    return int(np.searchsorted(values.indptr, position, side="right")) - 1, int(values.indices[position])
