"""`pl.uncertainty`: how well each cell's place is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._keys import fit_keys
from .._validate import near_matches
from ..get import uncertainty_df
from ._colors import shades
from ._figure import WIDTH, note, one_axes
from ._output import plot
from ._points import draw_cells

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BY_CAPITALS = {"umap", "pca"}  # names that are abbreviations


@plot
def uncertainty(
    adata: AnnData,
    basis: str | None = None,
    *,
    key: str = "lfm",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Cells in any embedding, darker the less is known of where they belong.

    The colour is the posterior standard deviation of a cell's place over all factors, as a share of the spread of the
    cells (`relative` of :func:`scvi_lfm.get.uncertainty_df`): at 0.1 a cell is known to a tenth of the distances
    between cells, at 1 it may be anywhere among them. To draw it with scanpy, put that column into `obs`.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`), or with cells that :func:`scvi_lfm.tl.project` placed.
    basis
        Embedding to draw, such as `"umap"`: a key of `obsm`, with or without its `"X_"`, as in
        :func:`scanpy.pl.embedding`. None draws the first two factors.
    key
        The `key_added` of the fit.
    title
        Title of the plot.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.
    save
        File to save the figure to, such as `"figure.png"`; None saves none. It is the whole path: nothing is added.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The axes; the figure with `return_fig`; None if it was shown. What is drawn is the table
    :func:`scvi_lfm.get.uncertainty_df`.

    Raises
    ------
    KeyError
        There is no such fit or embedding.
    TypeError, ValueError
        The embedding has fewer than two columns or places that are no numbers, or an argument is none of the above.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3, likelihood="negative_binomial")
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> axes = lfm.pl.uncertainty(adata, show=False)
    """
    relative = uncertainty_df(adata, key=key)["relative"]
    xy, names = _places(adata, fit_keys(key).cell_factors if basis is None else basis, is_fit=basis is None)
    axes = one_axes(ax, size=(WIDTH, 4.2))
    axes.set(xlabel=names[0], ylabel=names[1], title=title or "")
    low, high = relative.min(), relative.max()
    alike = bool(np.isclose(low, high, rtol=1e-3))
    label = "sd of a cell's place / spread of cells"
    draw_cells(axes, xy, relative, cmap=shades(), vmin=0, vmax=1 if alike else high, label=label)
    if alike:
        note(axes, f"all cells are known equally well: {high:.2g}")
    return axes


def _places(adata: AnnData, basis: object, *, is_fit: bool) -> tuple[np.ndarray, list[str]]:
    """First two coordinates of the cells, (n, 2), and what the axes are called."""
    if not isinstance(basis, str):
        msg = f"`basis` must be the name of an embedding in obsm, such as 'umap', found {basis!r}."
        raise TypeError(msg)
    name = basis if basis in adata.obsm else fit_keys(basis).cell_factors
    if name not in adata.obsm:
        msg = f"`basis`: obsm has neither {basis!r} nor {name!r}. {near_matches(name, adata.obsm)}"
        raise KeyError(msg)
    places = np.asarray(adata.obsm[name])
    if places.ndim != 2 or places.shape[1] < 2:
        msg = f"`basis`: obsm[{name!r}] has shape {places.shape}, and two columns are needed to draw it."
        raise ValueError(msg)
    if n_lost := int((~np.isfinite(places[:, :2])).any(1).sum()):
        msg = f"`basis`: obsm[{name!r}] says of {n_lost} of {len(places)} cells not where they lie: not a number there."
        raise ValueError(msg)
    if is_fit:
        return places[:, :2], ["factor 0", "factor 1"]
    stem = name.removeprefix(fit_keys("").cell_factors)
    return places[:, :2], [f"{stem.upper() if stem in BY_CAPITALS else stem}{k}" for k in (1, 2)]
