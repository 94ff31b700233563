"""Which entries are data, and which of those are held out to be predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._validate import near_matches
from .canonical import canonical
from .entries import HeldOut, Observed
from .memory import is_among, select
from .opening import is_elsewhere, source_of
from .source import ones_at

if TYPE_CHECKING:
    from anndata import AnnData

    from .matrix import CellMatrix


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
    if is_elsewhere(held_out):
        held_out = source_of(held_out, where).whole()
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
    stored, source = observed == "stored", matrix.source
    if stored and not source.is_sparse:
        msg = (
            "`observed`='stored' takes the stored entries of a sparse matrix for data, and this one is dense, with "
            "every entry stored. Make it sparse with the unseen entries left out (scipy.sparse.csr_array), or pass "
            "observed='all'."
        )
        raise ValueError(msg)
    if mask is None or mask.nnz == 0:
        return replace(matrix, observed=Observed(source.pattern(), only=True)) if stored else matrix
    if stored:
        pattern = source.pattern()
        mask = select(mask, is_among(mask, pattern))
        if mask.nnz == 0:
            msg = "`held_out` holds out no stored entry, and with `observed`='stored' no other has a value to predict."
            raise ValueError(msg)
        if mask.nnz == source.n_stored:
            msg = "`held_out` holds out every stored entry: there is nothing left to fit."
            raise ValueError(msg)
    cell, gene = (part.astype(np.int64) for part in mask.nonzero())
    held = HeldOut(cell, gene, source.entries(cell, gene).astype(np.float64))
    kept = source.without(mask)
    return replace(
        matrix, source=kept, observed=Observed(kept.pattern() if stored else ones_at(mask), stored), held_out=held
    )
