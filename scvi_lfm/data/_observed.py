"""Which entries are data, and which of those are held out to be predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._validate import near_matches
from ._blocks import CellMatrix, HeldOut, Observed
from ._gate import canonical

if TYPE_CHECKING:
    from anndata import AnnData


def read_held_out(adata: AnnData, held_out: object, *, genes: np.ndarray | None = None) -> sp.csr_array | None:
    """Read a mask of entries, True where held out: the name of a layer, or a sparse boolean matrix.

    Parameters
    ----------
    adata
        Annotated data.
    held_out
        Name of a layer, a sparse boolean matrix (n, m), or None.
    genes
        Boolean mask of the genes to keep, (m,); None keeps all.

    Returns
    -------
    The mask (n, genes kept), with no entry stored but those held out; None where none is.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError
        It is not a sparse boolean matrix.
    ValueError
        Its shape is another, or it holds out nothing, or everything.
    """
    if held_out is None:
        return None
    where = "`held_out`"
    if isinstance(held_out, str):
        if held_out not in adata.layers:
            msg = f"`held_out`: there is no layer {held_out!r}. {near_matches(held_out, adata.layers)}"
            raise KeyError(msg)
        where, held_out = f"`held_out`={held_out!r}", adata.layers[held_out]
    if not isinstance(held_out, sp.spmatrix | sp.sparray):
        msg = (
            f"{where} must be the name of a layer or a sparse boolean matrix, found {type(held_out).__name__}. "
            "Pass scipy.sparse.csr_array(mask) with a boolean mask, True where an entry is held out."
        )
        raise TypeError(msg)
    if held_out.dtype != bool:
        msg = f"{where} must be boolean, found dtype {held_out.dtype}. Call .astype(bool): True is held out."
        raise TypeError(msg)
    if held_out.shape != adata.shape:
        msg = f"{where} has shape {held_out.shape}, but `adata` has {adata.shape}: one entry for each of its values."
        raise ValueError(msg)
    mask = sp.csr_array(canonical(held_out), copy=True)
    mask.eliminate_zeros()
    if genes is not None and not genes.all():
        mask = mask[:, np.flatnonzero(genes)]
    if mask.nnz in {0, mask.shape[0] * mask.shape[1]}:
        what = "nothing: every entry is False" if mask.nnz == 0 else "everything: every entry is True"
        msg = (
            f"{where}, at the genes to fit, holds out {what}. True marks the entries to predict; the others are fitted."
        )
        raise ValueError(msg)
    return mask


def restrict(matrix: CellMatrix, observed: str, mask: sp.csr_array | None) -> CellMatrix:
    """The values that are data, with the record of which those are; held-out values are kept aside.

    Parameters
    ----------
    matrix
        All values.
    observed
        `"all"`: every entry is data. `"stored"`: those stored in a sparse matrix, zeros among them.
    mask
        Entries held out, of :func:`read_held_out`.

    Raises
    ------
    ValueError
        `"stored"` was asked of a dense matrix, or nothing is left.
    """
    stored = observed == "stored"
    if stored and isinstance(matrix.values, np.ndarray):
        msg = (
            "`observed`='stored' takes the stored entries of a sparse matrix for data, and this one is dense, with "
            "every entry stored. Make it sparse with the unseen entries left out (scipy.sparse.csr_array), or pass "
            "observed='all'."
        )
        raise ValueError(msg)
    if mask is None or mask.nnz == 0:
        return replace(matrix, observed=Observed(_ones(matrix.values), only=True)) if stored else matrix
    if stored and not isinstance(matrix.values, np.ndarray):
        mask = _within(mask, matrix.values)
        if mask.nnz == 0:
            msg = "`held_out` holds out no stored entry, and with `observed`='stored' no other has a value to predict."
            raise ValueError(msg)
        if mask.nnz == matrix.values.nnz:
            msg = "`held_out` holds out every stored entry: there is nothing left to fit."
            raise ValueError(msg)
    held = _held_out(matrix.values, mask)
    if isinstance(matrix.values, np.ndarray):
        kept = matrix.values.copy()
        kept[held.cell, held.gene] = 0
    else:
        kept = _without(matrix.values, mask)
    pattern = _ones(kept) if stored else _ones(mask)
    return replace(matrix, values=kept, observed=Observed(pattern, only=stored), held_out=held)


def _ones(matrix: sp.csr_array) -> sp.csr_array:
    ones = np.ones(matrix.nnz, dtype=np.float32)
    return sp.csr_array((ones, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)


def _positions(matrix: sp.csr_array) -> np.ndarray:
    """Place of each stored entry in the flattened matrix, increasing."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows * matrix.shape[1] + matrix.indices


def _within(mask: sp.csr_array, values: sp.csr_array) -> sp.csr_array:
    """The entries of a mask that are stored in a matrix."""
    return _select(mask, np.isin(_positions(mask), _positions(values), assume_unique=True))


def _without(values: sp.csr_array, mask: sp.csr_array) -> sp.csr_array:
    """A matrix without the entries of a mask."""
    return _select(values, ~np.isin(_positions(values), _positions(mask), assume_unique=True))


def _select(matrix: sp.csr_array, kept: np.ndarray) -> sp.csr_array:
    starts = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)


def _held_out(values: sp.csr_array | np.ndarray, mask: sp.csr_array) -> HeldOut:
    cell = np.repeat(np.arange(mask.shape[0], dtype=np.int64), np.diff(mask.indptr))
    gene = mask.indices.astype(np.int64)
    if isinstance(values, np.ndarray):
        return HeldOut(cell, gene, values[cell, gene].astype(np.float64))
    places, stored = _positions(mask), _positions(values)
    at = np.minimum(np.searchsorted(stored, places), max(len(stored) - 1, 0))
    y = np.zeros(len(places))
    if len(stored):
        found = stored[at] == places
        y[found] = values.data[at[found]]
    return HeldOut(cell, gene, y)
