"""Colours that every kind of colour vision tells apart, and that stand out on white."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._validate import near_matches

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

# Okabe and Ito's palette
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#757575"
# ten colours for groups (Petroff 2021, arXiv:2107.02270)
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
# further groups take the same colours in another shape
MARKERS = ("o", "^", "s", "D", "v")
MISSING = "#d3d3d3"
# from little to much, each darker than the one before, so that it reads in grey as well
_SHADES = ("#9ebcd8", "#3f7fb5", "#0b3d73", "#06122e")


def shades(*, reverse: bool = False) -> Colormap:
    """A colour map of one hue, darker the higher the number."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", _SHADES[::-1] if reverse else _SHADES)


def color_map(name: object) -> Colormap:
    """The colour map of a name, or the one given; None: `shades`."""
    import matplotlib as mpl
    from matplotlib.colors import Colormap

    if name is None or isinstance(name, Colormap):
        return shades() if name is None else name
    if not isinstance(name, str):
        msg = f"`cmap` must be the name of a colour map, such as 'cividis', or a matplotlib Colormap, found {name!r}."
        raise TypeError(msg)
    if name not in mpl.colormaps:
        msg = f"`cmap`: matplotlib has no colour map {name!r}. {near_matches(name, mpl.colormaps)}"
        raise ValueError(msg)
    return mpl.colormaps[name]


def steps(n: int) -> list[tuple[float, ...]]:
    """Colours of `n` lines in an order, from dark blue to orange."""
    import matplotlib as mpl
    import numpy as np

    return [tuple(map(float, color)) for color in mpl.colormaps["plasma"](np.linspace(0, 0.72, max(n, 1)))][:n]
