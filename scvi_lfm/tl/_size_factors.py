"""Size factors of cells, for count likelihoods: how many times the average depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._fit_arguments import ARRAY
from .._keys import EXPECTED_COUNTS, TOTAL_COUNTS
from .._validate import memory_first, one_column
from ..posterior.store.lookup import entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from torch import Tensor

    from ..data import CellMatrix
    from ..posterior import StoredFit


def resolve_size_factors(adata: AnnData, given: object, matrix: CellMatrix) -> np.ndarray:
    """Size factors (n,), float64: those given, or total counts over their mean.

    Raises
    ------
    KeyError
        There is no such column of obs.
    TypeError, ValueError
        They are not one positive number for each cell, or a cell has no count.
    """
    if given is None:
        totals = total_counts(adata, matrix)
        return totals / totals.mean()
    if isinstance(given, str):
        given = one_column(adata.obs, given, "obs", "size_factors").to_numpy()
    if isinstance(given, pd.Series) and not given.index.equals(adata.obs_names):
        msg = "`size_factors` is a Series whose index is not obs_names. Reorder it, or pass its .to_numpy() if it fits."
        raise ValueError(msg)
    values = np.asarray(given)
    if values.dtype.kind not in "fiu":
        msg = f"`size_factors` must be numbers or the name of a column of obs, found dtype {values.dtype}."
        raise TypeError(msg)
    if values.shape != (adata.n_obs,):
        msg = f"`size_factors` must hold one number for each of {adata.n_obs} cells, found shape {values.shape}."
        raise ValueError(msg)
    bad = ~((values > 0) & np.isfinite(values))
    if bad.any():
        msg = (
            f"`size_factors` must be positive and finite: {int(bad.sum())} are not, first {values[bad][0]} of cell "
            f"{adata.obs_names[bad][0]!r}."
        )
        raise ValueError(msg)
    return values.astype(np.float64)


def new_size_factors(
    adata: AnnData, given: object, matrix: CellMatrix, stored: StoredFit, record: Mapping[str, Any], kept: Tensor
) -> np.ndarray:
    """Size factors of new cells on the scale of a reference, which counted the genes `kept` among others.

    `record` is what the reference holds in uns.
    """
    if given is None:
        given = stored.arguments.size_factors
        if given == ARRAY:
            msg = "The reference was fitted with size factors of its own: pass those of the new cells as size_factors=."
            raise ValueError(msg)
    if given is not None or TOTAL_COUNTS not in record:
        return resolve_size_factors(adata, given, matrix)
    key = stored.keys.uns
    total, expected = float(entry(record, TOTAL_COUNTS, key)), float(entry(record, EXPECTED_COUNTS, key))
    for name, value in ((TOTAL_COUNTS, total), (EXPECTED_COUNTS, expected)):
        if not (value > 0 and np.isfinite(value)):
            msg = (
                f"uns[{key!r}][{name!r}] of the reference must be positive, found {value:g}: it was changed after the "
                "fit. Put it back, or run lfm.tl.fit on the reference again."
            )
            raise ValueError(msg)
    share = float(stored.posterior.expected_rates()[kept].sum()) / expected
    return total_counts(adata, matrix) / (total * share)


def total_counts(adata: AnnData, matrix: CellMatrix) -> np.ndarray:
    """Counts of each cell, (n,); a cell without any raises."""
    totals = matrix.summary.cell_sums
    empty = totals == 0
    if empty.any():
        what, mend = "no counts", f"Call {memory_first(adata)}sc.pp.filter_cells(adata, min_counts=1) first"
        if matrix.held_out is not None and np.isin(np.flatnonzero(empty), matrix.held_out.cell).any():
            what, mend = "no counts but those held out", "Hold out fewer of them"
        msg = (
            f"{int(empty.sum())} cell(s) have {what}, first {adata.obs_names[empty][0]!r}, and so no size factor. "
            f"{mend}, or pass size_factors=."
        )
        raise ValueError(msg)
    return totals
