"""`tl.hold_out`: a random part of the data set aside, to measure how well the rest predicts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._fit_arguments import OBSERVED
from .._keys import train_layer
from .._settings import logger
from .._validate import (
    check_anndata,
    check_choice,
    check_fraction,
    check_key,
    check_not_empty,
    place_of,
    resolve_rng,
)
from ..data import read_matrix
from ..data.checks import check_counts
from ..data.holding_out import draw_entries, thin_molecules
from ._overwriting import check_free, write_fields
from ._tool import tool

if TYPE_CHECKING:
    from anndata import AnnData

    from ..data import CellMatrix


@tool
def hold_out(
    adata: AnnData,
    fraction: float = 0.1,
    *,
    by: str = "entries",
    observed: str = "all",
    layer: str | None = None,
    rng: int | np.random.Generator = 0,
    key_added: str = "held_out",
    copy: bool = False,
) -> AnnData | None:
    r"""Set a random part of the data aside: entries, molecules or whole cells.

    - Entries are for judging predictions of what was not seen, and the number of factors. Pass the mask to
      :func:`scvi_lfm.tl.fit` as `held_out=`, which leaves them out and records their density and error.
    - Molecules are for counts: each is held out with probability `fraction`,

      .. math:: y^\mathrm{held}_{ij} \sim \mathrm{Binomial}(y_{ij}, f), \qquad y^\mathrm{train} = y - y^\mathrm{held}

      Under the Poisson likelihood the two parts are independent given the rates. Fit with `layer="held_out_train"`; the
      rate of a held-out count is :math:`f / (1 - f)` times the fitted one.
    - Cells (users) are for judging :func:`scvi_lfm.tl.project`: fit the others, mask part of the entries of these,
      project them and predict the masked entries.

    No row loses all that it has: where all of a row's entries (or molecules) were drawn, one of them is kept at random,
    and their number is logged. A gene (an item) may lose all of its entries; it falls back to its prior.

    Parameters
    ----------
    adata
        Annotated data. Values in a file or a dask array are read a few cells at a time, three times; what is written is
        in memory. Entries of a dask array are found by the workers of the active client of dask, if there is one.
    fraction
        Share to hold out, between 0 and 1: of the entries, the molecules or the cells.
    by
        `"entries"`, `"molecules"` or `"rows"`.
    observed
        What counts as data, as in the fit to come; for entries only. `"all"`: zeros are data; `fraction` of the entries
        that are not zero are held out and as many zeros, but at most `fraction` of the zeros. `"stored"` (ratings): the
        stored entries of a sparse matrix are the data, stored zeros among them, and only they are held out.
    layer
        Layer to read; None reads `X`.
    rng
        Seed or generator. The same seed gives the same mask; a generator is advanced.
    key_added
        Name of the fields below. What is there already must be an earlier result of this tool; where a fit read it, the
        same values.
    copy
        Return a copy instead of writing into `adata`.

    Returns
    -------
    None, or the copy if `copy`. One of these is written, for `key_added="held_out"`:

    `.layers['held_out']` : (n, m), sparse
        For entries, True where held out. For molecules, the counts that are held out, float32.
    `.layers['held_out_train']` : (n, m), sparse
        For molecules: the counts that stay, float32.
    `.obs['held_out']` : (n,)
        For rows: True where the cell is held out.
    `.uns['lfm_written']` : dict
        Which tool wrote which field, by container and name.

    Raises
    ------
    KeyError
        There is no such layer.
    TypeError
        An argument is of the wrong type.
    ValueError
        A choice or fraction is out of its range, nothing would be held out, the counts are not whole numbers,
        `observed="stored"` was asked of a dense matrix, or the result would overwrite what was read.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3, likelihood="poisson")
    >>> lfm.tl.hold_out(adata, 0.1)
    >>> adata.layers["held_out"].dtype, adata.layers["held_out"].shape
    (dtype('bool'), (200, 50))
    >>> lfm.tl.hold_out(adata, 0.1, by="molecules", key_added="thinned")
    >>> parts = adata.layers["thinned"] + adata.layers["thinned_train"]
    >>> (parts != adata.X).nnz
    0
    """
    check_anndata(adata)
    check_not_empty(adata)
    share = check_fraction("fraction", fraction)
    check_choice("by", by, ("entries", "molecules", "rows"))
    check_choice("observed", observed, OBSERVED)
    check_key("key_added", key_added)
    if observed == "stored" and by != "entries":
        msg = f"`observed='stored'` says which entries are held out, and by={by!r} holds out none. Leave it out."
        raise ValueError(msg)
    generator = resolve_rng(rng)
    if by == "rows":
        return _write(adata, key_added, "obs", {key_added: _rows(adata.n_obs, share, generator)}, copy=copy)
    added = [key_added, train_layer(key_added)] if by == "molecules" else [key_added]
    if layer in added:
        msg = f"`key_added`: layers[{layer!r}], which is read, would be overwritten. Pass another key_added."
        raise ValueError(msg)
    matrix = read_matrix(adata, layer)
    where = place_of(layer)
    if by == "molecules":
        names = adata.obs_names, adata.var_names
        check_counts(matrix.source, where, *names, asked="by='molecules'", otherwise="by='entries'")
        train, held, kept = thin_molecules(matrix.source, share, generator)
        parts = [held, train]
    else:
        held, kept = _entries(matrix, share, generator, where, observed)
        parts = [held]
    if held.nnz == 0:
        msg = f"`fraction`: nothing of {where} was drawn with {share:g}. Pass a larger fraction."
        raise ValueError(msg)
    if kept:
        logger.info("hold_out kept one of the %s of %s row(s) of which all had been drawn", by, kept)
    held_out = {name: sp.csr_matrix(part) for name, part in zip(added, parts, strict=True)}
    return _write(adata, key_added, "layers", held_out, copy=copy)


def _write(adata: AnnData, key: str, container: str, values: dict[str, Any], *, copy: bool) -> AnnData | None:
    """Write fields that are free, or hold an earlier result; those that hold the same values already are no matter."""
    fields = getattr(adata, container)
    changed = [name for name in values if not (name in fields and _same(fields[name], values[name]))]
    ends = [name.removeprefix(key) for name in changed]
    check_free(adata, "hold_out", key, lambda stem: [(container, f"{stem}{end}") for end in ends], copy=copy)
    return write_fields(adata, "hold_out", {(container, name): part for name, part in values.items()}, copy=copy)


def _same(stored: Any, drawn: Any) -> bool:
    if not sp.issparse(drawn):
        return np.array_equal(stored, drawn)
    return sp.issparse(stored) and stored.dtype == drawn.dtype and (stored != drawn).nnz == 0


def _rows(n_cells: int, fraction: float, rng: np.random.Generator) -> np.ndarray:
    n_drawn = round(fraction * n_cells)
    if not 0 < n_drawn < n_cells:
        msg = f"`fraction`: {fraction:g} of {n_cells} row(s) is {n_drawn}; at least one must be held out, and one stay."
        raise ValueError(msg)
    drawn = np.zeros(n_cells, dtype=bool)
    drawn[rng.choice(n_cells, n_drawn, replace=False)] = True
    return drawn


def _entries(
    matrix: CellMatrix, fraction: float, rng: np.random.Generator, where: str, observed: str
) -> tuple[sp.csr_array, int]:
    if observed == "stored" and not matrix.source.is_sparse:
        msg = (
            f"`observed='stored'` needs a sparse matrix, and {where} is dense: all of its entries are stored. "
            "Make it sparse, with the observed entries alone, or pass observed='all'."
        )
        raise ValueError(msg)
    return draw_entries(matrix.source, fraction, rng, stored=observed == "stored")
