"""Columns of obs on a page, and where its cells lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..._keys import fit_keys
from ..._validate import as_labels, as_list, check_count, near_matches, one_column
from .._points import PALETTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

MOST_GROUPS = 200  # of a column that nobody asked for
MOST_GROUPS_ASKED = 2_000


@dataclass(frozen=True)
class Column:
    """A column: codes of its labels, the number of labels where one is missing; or numbers."""

    name: str
    values: np.ndarray
    labels: list[str] | None = None
    colours: list[str] | None = None

    @property
    def header(self) -> dict[str, Any]:
        """What the page's header says of it."""
        if self.labels is None:
            return {"name": self.name, "kind": "numbers"}
        return {"name": self.name, "kind": "labels", "labels": self.labels, "colours": self.colours}


def columns_of(adata: AnnData, asked: list[str], *, others: bool) -> list[Column]:
    """The columns asked for, and if `others` all that hold labels of few groups."""
    made = [_made(adata, name, most=MOST_GROUPS_ASKED) for name in asked]
    if others:
        left = [name for name in dict.fromkeys(adata.obs.columns) if isinstance(name, str) and name not in asked]
        for name in left:
            try:
                column = _made(adata, name, most=MOST_GROUPS)
            except (TypeError, ValueError):  # nobody asked for it
                continue
            if column.labels is not None:
                made.append(column)
    return made


def check_columns(adata: AnnData, argument: str, asked: object) -> list[str]:
    """Names of columns of obs as a list."""
    listed = as_list(argument, asked)
    for name in listed:
        one_column(adata.obs, name, "obs", argument)
    return list(dict.fromkeys(listed))


def _made(adata: AnnData, name: str, *, most: int) -> Column:
    column = one_column(adata.obs, name, "obs")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        if pd.api.types.is_complex_dtype(column):
            msg = f"obs[{name!r}] holds complex numbers, which are neither numbers nor labels to colour by."
            raise TypeError(msg)
        return Column(name, column.astype(float).to_numpy(dtype=np.float32, na_value=np.nan))
    try:
        groups = column.astype("category").cat
    except TypeError as error:
        msg = f"obs[{name!r}] holds values that are neither numbers nor labels. Make them labels: .astype(str)."
        raise TypeError(msg) from error
    used = np.flatnonzero(np.bincount(groups.codes[groups.codes >= 0], minlength=len(groups.categories)))
    if len(used) > most:
        msg = f"obs[{name!r}] holds {len(used):,} different labels, and a page shows at most {most:,} groups."
        raise ValueError(msg)
    labels = as_labels(pd.Series(groups.categories[used]), f"obs[{name!r}]").tolist()
    codes = np.full(len(groups.categories) + 1, len(used))  # the last is that of a missing label
    codes[used] = np.arange(len(used))
    values = codes[groups.codes.to_numpy()].astype(np.uint8 if len(used) < 256 else np.uint16)
    return Column(name, values, labels, _colours(adata.uns, name, len(groups.categories), used))


def _colours(uns: Mapping[str, Any], name: str, n: int, used: np.ndarray) -> list[str]:
    from matplotlib.colors import is_color_like, to_hex

    own = list(uns.get(f"{name}_colors", []))
    if len(own) == n and all(is_color_like(colour) for colour in own):
        return [to_hex(own[k]) for k in used]
    return [_shade(place) for place in range(len(used))]


def _shade(place: int) -> str:
    """Colours that can be told apart; further groups take them lighter, then darker."""
    colour = np.array([int(PALETTE[place % len(PALETTE)][k : k + 2], 16) for k in (1, 3, 5)])
    way = place // len(PALETTE) % 3
    mixed = colour if way == 0 else 0.5 * colour + (0.5 * 255 if way == 1 else 0)
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def resolve_basis(adata: AnnData, basis: object, dimensions: object) -> tuple[str, tuple[int, int]]:
    """The key in obsm and the two columns to draw."""
    if not isinstance(basis, str):
        msg = f"`basis` must be a key of obsm, found {basis!r}."
        raise TypeError(msg)
    key = next((name for name in (basis, fit_keys(basis).cell_factors) if name in adata.obsm), None)
    if key is None:
        there = sorted(str(name) for name, rows in adata.obsm.items() if len(np.shape(rows)) == 2)
        msg = f"`basis`: obsm has no {basis!r}. {near_matches(basis, there)}"
        if "umap" in basis:
            msg += " Run sc.tl.umap(adata) first, or pass another basis, with dimensions=(0, 1) for its first two."
        raise KeyError(msg)
    shape = np.shape(adata.obsm[key])
    n = shape[1] if len(shape) == 2 else 0
    if dimensions is None:
        if n != 2:
            msg = (
                f"`basis`: obsm[{key!r}] has {n} column(s), and a plot has 2. Pass `dimensions`, such as (0, 1), to "
                "say which."
            )
            raise ValueError(msg)
        return key, (0, 1)
    listed = as_list("dimensions", dimensions)
    if len(listed) != 2:
        msg = f"`dimensions` must be two columns of the basis, such as (0, 1), found {dimensions!r}."
        raise ValueError(msg)
    chosen = tuple(check_count("dimensions", column, minimum=0) for column in listed)
    if max(chosen) >= n:
        msg = f"`dimensions` asks for column {max(chosen)}, and obsm[{key!r}] has {n}, counted from 0."
        raise ValueError(msg)
    return key, (chosen[0], chosen[1])


def positions_of(adata: AnnData, key: str, dimensions: tuple[int, int]) -> tuple[list[dict[str, float]], np.ndarray]:
    """Range of each axis, and positions in 65,535 steps along it, (2, n)."""
    rows = adata.obsm[key]
    rows = rows.to_numpy() if hasattr(rows, "to_numpy") else rows.toarray() if hasattr(rows, "toarray") else rows
    xy = np.asarray(rows)[:, list(dimensions)].astype(np.float64)
    if not np.isfinite(xy).all():
        bad = ~np.isfinite(xy).all(1)
        msg = (
            f"`basis`: obsm[{key!r}] is not finite in {int(bad.sum())} cell(s), first {adata.obs_names[bad][0]!r}. "
            "Leave them out: adata[np.isfinite(...).all(1)]."
        )
        raise ValueError(msg)
    low, high = xy.min(0), xy.max(0)
    steps = np.where(high > low, high - low, 1) / 65_535
    axes = [{"low": float(a), "high": float(b)} for a, b in zip(low, high, strict=True)]
    return axes, ((xy - low) / steps).round().astype(np.uint16).T
