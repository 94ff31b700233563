"""Colours of numbers: seen on white, and told apart without hues."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

import scvi_lfm as lfm
from scvi_lfm.pl._colors import shades

EVERY = np.linspace(0, 1, 101)


def luminance(colors):
    """Relative luminance as defined in WCAG 2, 0 for black and 1 for white."""
    rgb = np.asarray(colors)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast_with_white(colors):
    return 1.05 / (luminance(colors) + 0.05)


def test_points_stand_out_and_high_values_most():
    assert contrast_with_white(shades()(EVERY)).min() > 1.8
    assert contrast_with_white(shades()(1.0)) > 12
    # as the highest values of a map that ends in yellow do not
    assert contrast_with_white(mpl.colormaps["viridis"](1.0)) < 1.3


@pytest.mark.parametrize("reverse", [False, True])
def test_lightness_alone_tells_numbers_apart(reverse):
    steps = np.diff(luminance(shades(reverse=reverse)(EVERY)))
    assert ((steps > 0) if reverse else (steps < 0)).all()


@pytest.mark.parametrize("cmap", [None, "cividis", mpl.colormaps["magma"]])
def test_cells_take_the_map_that_is_asked_for(adata, cmap):
    drawn = lfm.pl.factors(adata, "gene_4", cmap=cmap, show=False).collections[-1].get_cmap()
    expected = shades() if cmap is None else mpl.colormaps[cmap] if isinstance(cmap, str) else cmap
    np.testing.assert_array_equal(drawn(EVERY), expected(EVERY))


@pytest.mark.parametrize(
    ("cmap", "error", "message"),
    [
        ("viridiss", ValueError, r"`cmap`: matplotlib has no colour map 'viridiss'. Did you mean 'viridis'"),
        (
            3,
            TypeError,
            r"`cmap` must be the name of a colour map, such as 'cividis', .* found 3",
        ),
    ],
)
def test_what_is_no_map_is_refused_before_drawing(adata, cmap, error, message):
    figures = mpl.pyplot.get_fignums()
    with pytest.raises(error, match=message):
        lfm.pl.factors(adata, cmap=cmap, show=False)
    assert mpl.pyplot.get_fignums() == figures
