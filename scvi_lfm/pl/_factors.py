"""`pl.factors`: cells in the plane of two factors."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._keys import PARAMS
from .._validate import near_matches, one_column, place_of
from ..get import variance_df
from ..get._stored import array_of_fit, check_factors, listed
from ._colors import color_map
from ._figure import SMALL, WIDTH, likelihood_of, many_axes, shown
from ._output import plot
from ._points import are_numbers, draw_cells, fit_legends

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


@plot
def factors(
    adata: AnnData,
    color: str | Sequence[str] | None = None,
    *,
    factors: tuple[int, int] = (0, 1),
    key: str = "lfm",
    cmap: str | Colormap | None = None,
    title: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Cells in the plane of two factors.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    color
        Column of `obs`, or a gene, to colour the cells by; or several, for a panel each. Genes are read from the layer
        that the fit read. Colours of categories are those in `uns[color + "_colors"]` where there are any.
    factors
        The two factors to draw, counted from 0: across and up.
    key
        The `key_added` of the fit.
    cmap
        Colour map of numbers, or its name; None goes from light blue to nearly black, so that high values stand out.
    title
        Title of the plot; of the figure, if there are several panels.
    ax
        Axes to draw on, one for each panel; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.
    save
        File to save the figure to, such as `"figure.png"`; None saves none. It is the whole path: nothing is added.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The axes, a list of them if `color` is one; the figure with `return_fig`; None if it was
    shown. The axis labels give the variance explained.

    Raises
    ------
    KeyError
        There is no such fit, column or gene.
    TypeError, ValueError
        There is no such factor or colour map, a column holds neither numbers nor labels, or `ax` has not one axes for
        each panel.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> axes = lfm.pl.factors(adata, "gene_0", show=False)
    """
    across, up = _pair(factors)
    colormap = color_map(cmap)
    shares = variance_df(adata, key=key)["variance_ratio"]
    check_factors([across, up], len(shares))
    xy = array_of_fit(adata, key, "obsm", "cell_factors")[:, [across, up]]
    layer = adata.uns[key][PARAMS].get("layer")
    several = color is not None and not isinstance(color, str)
    colors: list[Any] = listed("color", color) if several else [color]
    values = [None if name is None else _values(adata, name, layer=layer) for name in colors]
    panels = many_axes(len(values), ax, size=_size(values), n_cols=2)
    whole = "variance" if likelihood_of(adata, key).linear else "factors' variance"
    of_whole, fontsize = ("", SMALL + 1) if several else (f" of {whole}", None)
    for axes, name, column in zip(panels, colors, values, strict=True):
        axes.set_xlabel(f"factor {across} ({shares[across]:.1%}{of_whole})", fontsize=fontsize)
        axes.set_ylabel(f"factor {up} ({shares[up]:.1%}{of_whole})", fontsize=fontsize)
        palette = list(adata.uns.get(f"{name}_colors", []))
        draw_cells(axes, xy, column, palette=palette, cmap=colormap, label="" if several else None)
        if several:
            text = shown(name) if ax is None or not title else f"{title}: {shown(name)}"
            axes.set_title(text, fontsize=SMALL + 2, parse_math=False)
        else:
            axes.set_title(title or "")
    if ax is None:
        fit_legends(panels, min(len(panels), 2))
        if several and title:
            panels[0].figure.suptitle(title)
    return panels if several else panels[0]


def _size(values: list[pd.Series | None]) -> tuple[float, float]:
    """Inches of a panel: wider where a legend of groups stands beside the cells."""
    if len(values) == 1:
        return (4.6, 4.2) if values[0] is None else (WIDTH, 4.2)
    grouped = any(column is not None and not are_numbers(column) for column in values)
    return (4.6, 3.4) if grouped else (WIDTH / 2, 2.8)


def _pair(factors: object) -> tuple[int, int]:
    listed = list(factors) if isinstance(factors, Iterable) else []
    if len(listed) != 2:
        msg = f"`factors` must be two factors, such as (0, 1), found {factors!r}."
        raise ValueError(msg)
    return listed[0], listed[1]


def _values(adata: AnnData, color: str, *, layer: str | None) -> pd.Series:
    if not isinstance(color, str):
        msg = f"`color` must be the name of a column of obs or of a gene, or a list of them, found {color!r}."
        raise TypeError(msg)
    if color in adata.obs:
        column = one_column(adata.obs, color, "obs", "color")
        _check_column(column)
        return column
    if color not in adata.var_names:
        names = [*adata.obs.columns, *adata.var_names]
        msg = f"`color`: neither a column of obs nor a gene is called {color!r}. {near_matches(color, names)}"
        raise KeyError(msg)
    gene = adata[:, color]
    values = gene.X if layer is None else gene.layers.get(layer)
    if values is None:
        msg = (
            f"`color`: genes are read from {place_of(layer)}, which the fit read and `adata` has no more. Put it back "
            "or colour by columns of obs."
        )
        raise KeyError(msg)
    values = values.compute() if hasattr(values, "compute") else values  # a dask array, as of data read lazily
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return pd.Series(values[:, 0], index=adata.obs_names, name=color, dtype=float)


def _check_column(column: pd.Series) -> None:
    """Raise unless a column holds numbers or labels."""
    bad = "complex numbers" if pd.api.types.is_complex_dtype(column) else None
    if column.dtype == object:
        kinds = {type(value).__name__ for value in column if not isinstance(value, Hashable)}
        bad = f"values of type {min(kinds)}" if kinds else None
    if bad:
        msg = (
            f"`color`: obs[{column.name!r}] holds {bad}, which are neither numbers nor labels. Make them labels: "
            f"adata.obs[{column.name!r}] = adata.obs[{column.name!r}].astype(str)."
        )
        raise TypeError(msg)
