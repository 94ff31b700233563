"""Axes to draw on, and the words beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from .._keys import PARAMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

    from ..model.likelihoods import Likelihood

SMALL, LETTER = 8, 0.06  # points; and inches that a letter of this size takes, if not the widest
WIDTH = 6.4  # inches of a figure: in a notebook, wider ones are shrunk, and their letters with them
LONGEST = 26  # characters of a name beside a panel
# half the width of a 95 % interval of a Normal, in standard deviations
WHISKER = 1.96


def likelihood_of(adata: AnnData, key: str) -> Likelihood:
    """The likelihood of the fit under `key`; a fit that is there no more passes for a Normal."""
    from ..model.likelihoods import LIKELIHOODS  # torch comes with it, which no other plot needs

    return LIKELIHOODS[adata.uns.get(key, {}).get(PARAMS, {}).get("likelihood", "normal")]


def shown(name: object, longest: int = LONGEST) -> str:
    """A name on one line, its middle left out where it is too long to draw."""
    line, end = re.sub(r"\s", " ", str(name)), longest * 3 // 7
    return line if len(line) <= longest else f"{line[: longest - end - 1]}…{line[-end:]}"


def _in_lines(name: str, width: int) -> str:
    return "\n".join(wrap(name, width, max_lines=3, placeholder="…"))


def one_axes(ax: object, *, size: tuple[float, float] = (5.0, 3.8)) -> Axes:
    """`ax`, or the axes of a new figure of `size` inches."""
    return many_axes(1, ax, size=size)[0]


def many_axes(n: int, ax: object, *, size: tuple[float, float], n_cols: int = 1) -> list[Axes]:
    """`n` panels of `size` inches in a new figure, at most `n_cols` a row; `ax`, which has as many, instead."""
    if ax is not None:
        return _checked(ax, n)
    import matplotlib.pyplot as plt

    n_cols = min(n, n_cols)
    n_rows = -(-n // n_cols)
    _, grid = plt.subplots(
        n_rows, n_cols, figsize=(size[0] * n_cols, size[1] * n_rows), squeeze=False, layout="constrained"
    )
    for unused in grid.flat[n:]:
        unused.remove()
    for axes in grid.flat[:n]:
        axes.spines[["top", "right"]].set_visible(False)
    return list(grid.flat[:n])


def _checked(ax: object, n: int) -> list[Axes]:
    from matplotlib.axes import Axes

    listed: list[Any] = (
        [each for row in ax for each in np.ravel(row)] if isinstance(ax, Sequence | np.ndarray) else [ax]
    )
    for each in listed:
        if not isinstance(each, Axes):
            msg = f"`ax` must be a matplotlib Axes, found {type(each).__name__}."
            raise TypeError(msg)
    if len(listed) != n:
        room = "one panel" if len(listed) == 1 else f"{len(listed)} panels"
        are = "is 1" if n == 1 else f"are {n}"
        msg = f"`ax` has room for {room}, and there {are} to draw. Choose as many, pass {n} axes, or leave `ax` out."
        raise ValueError(msg)
    return listed


def row_panels(names: list[list[str]], ax: object) -> list[Axes]:
    """A panel, or one of `ax`, for each list of names, with room for them: as many in a row as a notebook shows."""
    n, longest = len(names), max((len(shown(name)) for each in names for name in each), default=1)
    n_cols = min(n, 2 if n == 4 else 3, int(WIDTH / (longest * LETTER + 1.2)))
    # one panel is as wide as what is written below it, beside the names
    size = (max(4.2, longest * LETTER + 3.6) if n == 1 else WIDTH / n_cols, 1.1 + 0.17 * max(map(len, names)))
    return many_axes(n, ax, size=size, n_cols=n_cols)


def name_rows(axes: Axes, names: Iterable[str]) -> None:
    """One row for each name, the first on top."""
    listed = list(names)
    axes.set_yticks(range(len(listed)), [shown(name) for name in listed], fontsize=SMALL, parse_math=False)
    axes.set_ylim(len(listed) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.tick_params(axis="y", length=0)


def describe(panels: list[Axes], names: list[str], xlabel: str, title: str | None, *, own: bool) -> None:
    """Name each panel, and say what all of them show: once, in a figure of our own."""
    if len(panels) == 1:
        panels[0].set_title(title or _in_lines(names[0], 40), parse_math=bool(title))
        panels[0].set_xlabel(xlabel, fontsize=SMALL + 1, parse_math=False)
        return
    for axes, name in zip(panels, names, strict=True):
        text = name if own or not title else f"{title}: {name}"
        axes.set_title(_in_lines(text, 20), fontsize=SMALL, parse_math=False)
        if not own:
            axes.set_xlabel(xlabel, fontsize=SMALL, parse_math=False)
    if own:
        figure = panels[0].figure
        figure.supxlabel(xlabel.replace("\n", " ", 1), fontsize=SMALL + 1, parse_math=False)
        if title:
            figure.suptitle(title)


def note(axes: Axes, *lines: str, color: str = "dimgrey") -> None:
    """Lines above the axes, at their right end and below the title; those that are too long go on below."""
    width = axes.get_window_extent().width / axes.figure.dpi
    n_letters = max(int(width / LETTER), 20)
    text = [part for line in lines for part in wrap(line, n_letters)]
    axes.annotate(
        "\n".join(text),
        (1, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
        color=color,
        parse_math=False,
    )
    axes.set_title(axes.get_title(), pad=8 + len(text) * (SMALL + 2))
