"""`pl.explorer`: the public call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._calls import named_arguments
from ..._validate import as_list, check_anndata, check_key, check_not_empty, near_matches
from .obs import check_columns, columns_of, positions_of, resolve_basis
from .page import page_parts
from .record import ExplorerPage
from .target import check_target, write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData

MOST_CELLS = 1_000_000


@named_arguments
def explorer(
    adata: AnnData,
    path: str | os.PathLike[str] = "explorer.html",
    *,
    basis: str = "X_umap",
    dimensions: tuple[int, int] | None = None,
    color: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    key: str = "lfm",
    title: str = "Cells and their genes",
    overwrite: bool = False,
) -> ExplorerPage:
    """Write a page in which cells are selected and their genes ranked.

    The page is one file that a browser opens by a double click: no server, no network. Draw a lasso around cells, or
    choose a group of a column of `obs`, and their genes appear as :func:`scvi_lfm.tl.rank_genes` ranks them, against
    all other cells or against a second selection. It also colours cells by what is expected of a gene, finds similar
    genes, counts the selected cells by group, and saves genes and cells as CSV. How exact it is: :doc:`/explorer`.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`), of at most 1,000,000 cells. It is only read.
    path
        File to write, ending in `.html`.
    basis
        Key of `obsm` that says where cells lie; `"umap"` stands for `"X_umap"`.
    dimensions
        Columns of the basis to draw, counted from 0; needed unless it has two.
    color
        Column or columns of `obs`, or fitted genes, to colour cells by; the page opens with the first. Colours of
        groups are those in `uns[column + "_colors"]` where there are any.
    columns
        Columns of `obs` to take along, besides `color`; None takes all that hold labels of at most 200 groups.
    key
        Stem under which the fit is stored.
    title
        Title of the page.
    overwrite
        Replace a file that is no earlier page; an earlier page is replaced in any case.

    Returns
    -------
    An :class:`~scvi_lfm.pl.ExplorerPage` with the `path` and the size of the page. A notebook shows it in a frame.

    Raises
    ------
    KeyError
        There is no such fit, basis, column or gene.
    TypeError, ValueError
        The file cannot be written there, the basis is not of two columns, a column cannot be shown, or there are too
        many cells.
    OSError
        The disk has no room for all of it; what was there is as it was.

    Examples
    --------
    >>> import tempfile
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(n_cells=200, n_genes=50, n_factors=3)
    >>> lfm.tl.fit(adata, n_factors=3, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = lfm.pl.explorer(adata, f"{folder}/cells.html", basis="X_lfm", dimensions=(0, 1))
    >>> page.n_cells, page.n_genes
    (200, 50)
    """
    check_anndata(adata)
    check_not_empty(adata)
    check_key("key", key)
    if not isinstance(title, str):
        msg = f"`title` must be a string, found {title!r}."
        raise TypeError(msg)
    if adata.n_obs > MOST_CELLS:
        msg = (
            f"`adata` has {adata.n_obs:,} cells, and a page holds at most {MOST_CELLS:,}. Pass a part of them, such as "
            f"adata[::{-(-adata.n_obs // MOST_CELLS)}]."
        )
        raise ValueError(msg)
    target = check_target(path, overwrite=overwrite)
    found, drawn = resolve_basis(adata, basis, dimensions)
    colors = [] if color is None else as_list("color", color)
    asked = [] if columns is None else check_columns(adata, "columns", columns)
    axes, xy = positions_of(adata, found, drawn)
    shown = [name for name in colors if name in adata.obs.columns]
    described = columns_of(adata, list(dict.fromkeys([*shown, *asked])), others=columns is None)

    # torch comes with them
    from ...posterior import read_fit
    from .fit import fit_payload, fold_note

    stored = read_fit(adata, key)
    genes = adata.var_names.to_numpy()[stored.fitted]
    first = [_place(name, [column.name for column in described], genes, adata) for name in colors][:1]
    payload = fit_payload(stored, genes)
    payload.header.update(
        title=title,
        basis=found,
        axes=axes,
        columns=[column.header for column in described],
        first=first[0] if first else {"column": 0} if described else None,
    )
    payload.arrays.update(
        {f"column_{c}": column.values for c, column in enumerate(described)},
        x=xy[0],
        y=xy[1],
        cell_names=[str(name) for name in adata.obs_names],
    )
    texts = {
        "title": title,
        "axes": found if dimensions is None else f"{found}, columns {drawn[0]} and {drawn[1]}",
        "eta_note": f"Cells are coloured by its {payload.header['eta']}.".replace(",.", "."),
        "fold_note": fold_note(payload.header),
    }
    size = write_whole(target, page_parts(payload, texts))
    return ExplorerPage(target, adata.n_obs, len(genes), size)


def _place(name: object, columns: list[str], genes: np.ndarray, adata: AnnData) -> dict[str, Any]:
    """Place in the page of what cells are coloured by."""
    if name in columns:
        return {"column": columns.index(str(name))}
    matches = (genes == name).nonzero()[0]
    if len(matches) == 0:
        in_var = name in adata.var_names
        what = "was not fitted" if in_var else "is neither a column of obs nor a fitted gene"
        msg = f"`color`: {name!r} {what}. {near_matches(name, [*adata.obs.columns, *genes])}"
        raise KeyError(msg)
    return {"gene": int(matches[0])}
