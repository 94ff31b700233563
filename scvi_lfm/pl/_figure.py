"""Axes to draw on, and what every plot does before and after it draws."""

from __future__ import annotations

import re
from textwrap import wrap
from typing import TYPE_CHECKING, TypeVar

from .._keys import PARAMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes

    from ..model.likelihoods import Likelihood

    Drawn = TypeVar("Drawn", Axes, list[Axes])

# Okabe and Ito's palette, which all kinds of colour vision tell apart
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
SMALL = 8
LONGEST = 26  # characters of a name beside a panel
# half the width of a 95 % interval of a Normal, in standard deviations
WHISKER = 1.96


def likelihood_of(adata: AnnData, key: str) -> Likelihood:
    """The likelihood of the fit under `key`; a fit that is there no more passes for a Normal."""
    from ..model.likelihoods import LIKELIHOODS  # torch comes with it, which no other plot needs

    return LIKELIHOODS[adata.uns.get(key, {}).get(PARAMS, {}).get("likelihood", "normal")]


def shown(name: object) -> str:
    """A name on one line, its middle left out where it is too long to draw."""
    line = re.sub(r"\s", " ", str(name))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 12]}…{line[-11:]}"


def _in_lines(name: str, width: int) -> str:
    return "\n".join(wrap(name, width, max_lines=3, placeholder="…"))


def one_axes(ax: Axes | None, *, size: tuple[float, float] = (5.0, 3.8)) -> Axes:
    """`ax`, or the axes of a new figure of `size` inches."""
    return many_axes(1, ax, size=size)[0]


def many_axes(n: int, ax: Axes | None, *, size: tuple[float, float]) -> list[Axes]:
    """`n` panels of `size` inches in a new figure; `ax` instead where one is enough."""
    if ax is not None:
        return [_checked(ax, n)]
    import matplotlib.pyplot as plt

    n_cols = n if n <= 4 else min((-n % c, -c, c) for c in (3, 4, 5))[-1]
    n_rows = -(-n // n_cols)
    _, grid = plt.subplots(
        n_rows, n_cols, figsize=(size[0] * n_cols, size[1] * n_rows), squeeze=False, layout="constrained"
    )
    for unused in grid.flat[n:]:
        unused.remove()
    for axes in grid.flat[:n]:
        axes.spines[["top", "right"]].set_visible(False)
    return list(grid.flat[:n])


def _checked(ax: object, n: int) -> Axes:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        msg = f"`ax` must be a matplotlib Axes, found {type(ax).__name__}."
        raise TypeError(msg)
    if n > 1:
        msg = f"`ax` has room for one panel, and there are {n} to draw. Choose one, or leave `ax` out."
        raise ValueError(msg)
    return ax


def row_panels(n: int, n_rows: int, ax: Axes | None) -> list[Axes]:
    """`n` panels, or `ax`, with room for `n_rows` names each."""
    return many_axes(n, ax, size=(4.2 if n == 1 else 2.7, 1.1 + 0.17 * n_rows))


def name_rows(axes: Axes, names: Iterable[str]) -> None:
    """One row for each name, the first on top."""
    listed = list(names)
    axes.set_yticks(range(len(listed)), [shown(name) for name in listed], fontsize=SMALL, parse_math=False)
    axes.set_ylim(len(listed) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.tick_params(axis="y", length=0)


def describe(panels: list[Axes], names: list[str], xlabel: str, title: str | None) -> None:
    """Name each panel, and say once what all of them show."""
    if len(panels) == 1:
        panels[0].set_title(title or _in_lines(names[0], 40), parse_math=bool(title))
        panels[0].set_xlabel(xlabel, fontsize=SMALL + 1, parse_math=False)
        return
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(_in_lines(name, LONGEST), fontsize=SMALL + 1, parse_math=False)
    figure = panels[0].figure
    figure.supxlabel(xlabel if len(panels) == 2 else xlabel.replace("\n", " "), fontsize=SMALL + 1, parse_math=False)
    if title:
        figure.suptitle(title)


def finish(axes: Drawn, *, show: bool | None) -> Drawn | None:
    """Show the figure and return None, or return `axes`; `show=None` does what scanpy is set to do."""
    if show is None:
        import scanpy as sc

        show = sc.settings.autoshow
    if not show:
        return axes
    import matplotlib.pyplot as plt

    plt.show()
    return None
