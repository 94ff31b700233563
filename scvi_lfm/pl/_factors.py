"""`pl.factors`: cells in the plane of two factors."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._calls import named_arguments
from .._keys import PARAMS, fit_keys
from .._validate import near_matches, one_column
from ..get import variance_df
from ..get._stored import check_factors
from ._figure import finish, likelihood_of, one_axes
from ._points import draw_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@named_arguments
def factors(
    adata: AnnData,
    color: str | None = None,
    *,
    factors: tuple[int, int] = (0, 1),
    key: str = "lfm",
    cmap: str = "viridis",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Cells in the plane of two factors.

    Parameters
    ----------
    adata
        Annotated data with a fit (:func:`scvi_lfm.tl.fit`).
    color
        Column of `obs`, or a gene, to colour the cells by. Genes are read from the layer that the fit read. Colours of
        categories are those in `uns[color + "_colors"]` where there are any.
    factors
        The two factors to draw, counted from 0: across and up.
    key
        The `key_added` of the fit.
    cmap
        Colour map of numbers.
    title
        Title of the plot.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure instead of returning its axes; None does as :attr:`scanpy.settings.autoshow` says.

    Returns
    -------
    The axes, or None if the figure was shown. The axis labels give the variance explained.

    Raises
    ------
    KeyError
        There is no such fit, column or gene.
    TypeError, ValueError
        There is no such factor.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 50, 3)
    >>> lfm.tl.fit(adata, 3, progress=False)
    >>> axes = lfm.pl.factors(adata, "gene_0", show=False)
    """
    across, up = _pair(factors)
    shares = variance_df(adata, key=key)["variance_ratio"]
    check_factors([across, up], len(shares))
    keys = fit_keys(key)
    if keys.cell_factors not in adata.obsm:
        msg = f"obsm has no {keys.cell_factors!r}. {near_matches(keys.cell_factors, adata.obsm)} Run lfm.tl.fit again."
        raise KeyError(msg)
    values = None if color is None else _values(adata, color, layer=adata.uns[key][PARAMS].get("layer"))
    axes = one_axes(ax, size=(6.4, 4.2) if color else (4.6, 4.2))
    xy = np.asarray(adata.obsm[keys.cell_factors])[:, [across, up]]
    draw_cells(axes, xy, values, palette=list(adata.uns.get(f"{color}_colors", [])), cmap=cmap)
    whole = "variance" if likelihood_of(adata, key).linear else "factors' variance"
    axes.set(
        xlabel=f"factor {across} ({shares[across]:.1%} of {whole})",
        ylabel=f"factor {up} ({shares[up]:.1%} of {whole})",
        title=title or "",
    )
    return finish(axes, show=show)


def _pair(factors: object) -> tuple[int, int]:
    listed = list(factors) if isinstance(factors, Iterable) else []
    if len(listed) != 2:
        msg = f"`factors` must be two factors, such as (0, 1), found {factors!r}."
        raise ValueError(msg)
    return listed[0], listed[1]


def _values(adata: AnnData, color: str, *, layer: str | None) -> pd.Series:
    if not isinstance(color, str):
        msg = (
            f"`color` must be the name of one column of obs, or of one gene, found {color!r}. Draw one after the other."
        )
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
    values = gene.X if layer is None else gene.layers[layer]
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
