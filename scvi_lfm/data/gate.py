"""From an AnnData to checked values: the one place that reads `X` and layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from .._memory import naming_memory
from .._validate import place_of
from .checks import check_finite, check_names
from .kind import kind_of
from .matrix import CellMatrix
from .memory import MemorySource
from .normalised import log_normalised
from .normalised_as_read import NormalisedAsRead, can_be_judged_later
from .opening import open_source
from .stored import Stored

# values elsewhere that take no more are read into memory once, rather than block by block again and again
MOST_BYTES_READ_IN = 2**28
BYTES_OF_PLACE = 4

if TYPE_CHECKING:
    from anndata import AnnData

    from .counted import CellSample
    from .source import CellSource


@naming_memory("read the values")
def read_matrix(
    adata: AnnData,
    layer: str | None = None,
    *,
    genes: np.ndarray | None = None,
    normalize: float | None = None,
    totals: np.ndarray | None = None,
    stored_only: bool = False,
    some: CellSample | None = None,
    later: bool = False,
) -> CellMatrix:
    """Read cells by genes, checked, without altering or densifying anything.

    Parameters
    ----------
    adata
        Annotated data; views are fine.
    layer
        Name of the layer to read; None reads `X`.
    genes
        Boolean mask of the genes to keep, (m,); None keeps all.
    normalize
        Sum over all genes, kept or not, that each cell is scaled to before log1p is taken; None takes values as they
        are.
    totals
        Instead of the sums over all genes, to normalise by: those of a fit, (n,).
    stored_only
        Whether entries that a sparse matrix does not store are no values; for the record of their kind alone.
    some
        Cells to read alone, into memory; None reads all.
    later
        Whether counts to normalise, of all genes, may be checked by :func:`judged` after they were worked with, where
        they are not in memory and a reading is saved by that. The record of their kind is None until then.

    Returns
    -------
    The values, with the record of their kind. They share memory with the AnnData wherever its form allows it, and stay
    in its file, or in its dask array, where they are many.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError
        The values are not real numbers, or of a form that is not read.
    ValueError
        There is no `X`, names repeat, or a value is NaN, infinite or, where they are to be normalised, negative.
    OSError
        A file cannot be read.
    """
    check_names(adata)
    where = place_of(layer)
    chosen = None if genes is None or genes.all() else np.flatnonzero(genes)
    source, names, normalised = open_source(adata, layer), adata.var_names, None
    of_all = some is None and totals is None and chosen is None
    if normalize is not None and later and of_all and source.cluster is None:
        stored = Stored.of(source)
        if not _is_small(source, stored) and can_be_judged_later(source, stored.at_most):
            return CellMatrix(NormalisedAsRead.of(source, normalize, stored))
    source = _read_in(source) if some is None else some.take(source)
    cells = adata.obs_names if some is None else adata.obs_names[some.cells]
    if normalize is not None:
        source, normalised = log_normalised(source, normalize, where, cells, names, totals, chosen)
    elif chosen is not None:
        source = source.at_genes(chosen)
    names = names if chosen is None else names[chosen]
    check_finite(source, where, cells, names)
    return CellMatrix(source, kind=kind_of(source.summary, stored_only=stored_only), normalised=normalised)


@naming_memory("read the values")
def judged(matrix: CellMatrix, adata: AnnData, layer: str | None) -> CellMatrix:
    """The matrix that :func:`read_matrix` returned without a record of its kind, checked, with what was left out.

    Nothing is read again if every cell was read among its neighbours since.

    Raises
    ------
    ValueError
        A value is NaN, infinite, negative or beyond float32.
    OSError
        A file cannot be read.
    """
    as_read, where = cast("NormalisedAsRead", matrix.source), place_of(layer)
    counts, of_logs, names = as_read.source, None, (adata.obs_names, adata.var_names)
    found = as_read.summaries()
    if found is not None:
        of_logs = found[1]
        counts.is_known(found[0])
    source, normalised = log_normalised(counts, as_read.target, where, *names, of_logs=of_logs)
    check_finite(source, where, *names)
    return replace(matrix, source=source, kind=kind_of(source.summary), normalised=normalised)


def _read_in(source: CellSource) -> CellSource:
    """The values where they lie, or in memory if they take little."""
    return MemorySource(source.whole()) if is_read_in(source.n_stored, source.dtype) else source


def _is_small(source: CellSource, stored: Stored) -> bool:
    """Whether the values are to be read in; of many nobody counts how many exactly."""
    return is_read_in(stored.about / 2, source.dtype) and is_read_in(source.n_stored, source.dtype)


def is_read_in(n_stored: float, dtype: np.dtype) -> bool:
    """Whether values that are not in memory are read in once."""
    return n_stored * (dtype.itemsize + BYTES_OF_PLACE) <= MOST_BYTES_READ_IN
