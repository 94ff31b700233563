from __future__ import annotations

import numpy as np

import scvi_lfm as lfm


def test_bars_and_line_are_the_table_in_percent(adata):
    table = lfm.get.variance_df(adata)
    axes = lfm.pl.variance(adata, show=False)
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], 100 * table["variance_ratio"])
    np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in axes.patches], table["factor"])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * table["cumulative"])


def test_labels(adata):
    axes = lfm.pl.variance(adata, show=False)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("factor", "variance explained (%)")
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"each factor", "cumulative"}
    assert axes.get_ylim()[0] == 0
