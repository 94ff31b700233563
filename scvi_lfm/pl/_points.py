"""Points of a scatter plot: their colours, and names that do not overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._colors import BLUE, MARKERS, MISSING, PALETTE, color_map
from ._figure import SMALL, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox
NARROWEST = 2.8  # inches of a panel for cells, with the labels of the axes, beside a legend


def are_numbers(values: pd.Series) -> bool:
    """Whether cells are coloured by a scale; by groups otherwise."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def draw_cells(
    axes: Axes,
    xy: np.ndarray,
    values: pd.Series | None,
    *,
    palette: Sequence[str] = (),
    cmap: Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    label: str | None = None,
) -> None:
    """Scatter the cells `xy` (n, 2), coloured by `values`: numbers with a colour bar, others with a legend.

    `label` stands beside the bar or over the legend, instead of the name of `values`.
    """
    style: dict[str, Any] = {
        "s": float(np.clip(30_000 / max(len(xy), 1), 1, 20)),
        "linewidths": 0,
        "rasterized": len(xy) > 5_000,
    }
    x, y = xy.T
    if values is None:
        axes.scatter(x, y, color=BLUE, alpha=0.6, **style)
        return
    label = shown(values.name) if label is None else label
    missing = values.isna().to_numpy()
    axes.scatter(x[missing], y[missing], color=MISSING, **style)
    # in the order of the file, or group after group, the last cells would hide the others
    order = np.random.default_rng(0).permutation(np.flatnonzero(~missing))
    if are_numbers(values):
        numbers = values.astype(float).to_numpy()[order]
        points = axes.scatter(x[order], y[order], c=numbers, cmap=color_map(cmap), vmin=vmin, vmax=vmax, **style)
        axes.figure.colorbar(points, ax=axes, aspect=30).set_label(label, parse_math=False)
        return
    if values.dtype == object:  # pandas does not sort tuples among other labels
        values = values.map(lambda label: str(label) if isinstance(label, tuple) else label)
    groups = values.astype("category").cat
    codes, n_groups = groups.codes.to_numpy(), len(groups.categories)
    own = len(palette) == n_groups
    colors = np.asarray(palette if own else [PALETTE[k % len(PALETTE)] for k in range(n_groups)])
    shapes = np.asarray([MARKERS[0 if own else k // len(PALETTE) % len(MARKERS)] for k in range(n_groups)])
    for shape in dict.fromkeys(shapes):
        rows = order[shapes[codes[order]] == shape]
        axes.scatter(x[rows], y[rows], c=colors[codes[rows]], marker=shape, **style)
    present = np.unique(codes[order])
    _add_legend(axes, groups.categories[present], colors[present], shapes[present], title=label)


def _add_legend(axes: Axes, names: pd.Index, colors: np.ndarray, shapes: np.ndarray, *, title: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", color=color, marker=shape) for color, shape in zip(colors, shapes, strict=True)
    ]
    legend = axes.legend(
        handles=handles,
        title=title,
        ncols=1 + len(names) // 18,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        fontsize=SMALL,
        title_fontsize=SMALL + 1,
        handletextpad=0.2,
    )
    legend.get_title().set(parse_math=False)
    # only now, as matplotlib leaves out handles whose labels begin with an underscore
    for handle, text, name in zip(legend.get_lines(), legend.get_texts(), names, strict=True):
        handle.set_label(str(name))
        text.set(text=shown(name), parse_math=False)


def fit_legends(panels: list[Axes], n_cols: int) -> None:
    """Widen the figure of `n_cols` columns where legends would leave the cells too little room."""
    figure = panels[0].figure.canvas.figure
    legends = [legend for axes in panels if (legend := axes.get_legend()) is not None]
    widest = max((legend.get_window_extent().width / figure.dpi for legend in legends), default=0.0)
    figure.set_figwidth(max(figure.get_figwidth(), n_cols * (NARROWEST + widest)))


def label_points(axes: Axes, xy: np.ndarray, names: list[str]) -> None:
    """Name the points `xy` (n, 2), first ones first; a name for which there is no room is left out.

    No name covers another, a named point, or what else is written on the axes.
    """
    # only once the layout is settled are the extents of texts known
    axes.figure.canvas.figure.draw_without_rendering()
    frame, points = axes.get_window_extent(), axes.transData.transform(xy)
    taken: list[Bbox] = []
    for point, name in zip(xy, names, strict=True):
        for offset in _OFFSETS:
            text = _write(axes, name, point, offset)
            box = text.get_window_extent().padded(2)
            within = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if within and not any(map(box.overlaps, taken)) and not box.count_contains(points):
                taken.append(box)
                _point_at(axes, point, offset)
                break
            text.remove()


# in points: nearest first, and above before below
_OFFSETS = [(d * np.cos(a), d * np.sin(a)) for d in (6, 16, 28) for a in np.pi * np.array([1, 3, 2, 7, 5]) / 4]


def _write(axes: Axes, name: str, point: np.ndarray, offset: tuple[float, float]) -> Annotation:
    from matplotlib.patheffects import withStroke

    dx, dy = offset
    return axes.annotate(
        name,
        tuple(point),
        offset,
        textcoords="offset points",
        fontsize=SMALL,
        ha="left" if dx > 1 else "right" if dx < -1 else "center",
        va="bottom" if dy > 0 else "top",
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=4,
        parse_math=False,
    )


def _point_at(axes: Axes, point: np.ndarray, offset: tuple[float, float]) -> None:
    """Ring the point, and lead from a name further off to it."""
    axes.plot(*point, "o", markersize=5, markerfacecolor="none", markeredgecolor="black", markeredgewidth=0.8)
    if np.hypot(*offset) > 10:
        line = {"arrowstyle": "-", "color": "black", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2.5}
        axes.annotate("", tuple(point), offset, textcoords="offset points", arrowprops=line)
