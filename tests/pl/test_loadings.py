from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


def whiskers(axes):
    """Half lengths of the whiskers, from top to bottom."""
    (container,) = axes.collections
    return [np.ptp(segment[:, 0]) / 2 for segment in container.get_segments()]


def test_bars_and_whiskers_are_the_table(adata):
    (axes,) = lfm.pl.loadings(adata, 1, n_genes=7, show=False)
    table = lfm.get.factors_df(adata, factors=1, n_genes=7).sort_values("loading", ascending=False)
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], table["loading"])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table["gene"])
    np.testing.assert_allclose(whiskers(axes), 1.96 * table["sd"], rtol=1e-5)
    # the first row is on top
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_signs_have_colours(adata):
    (axes,) = lfm.pl.loadings(adata, 0, n_genes=40, show=False)
    colors = {bar.get_width() > 0: bar.get_facecolor() for bar in axes.patches}
    assert len(colors) == len(set(colors.values())) == 2


def test_one_panel_for_each_factor(adata):
    panels = lfm.pl.loadings(adata, [2, 0], title="All", show=False)
    assert [axes.get_title() for axes in panels] == ["factor 2", "factor 0"]
    assert panels[0].figure.get_suptitle() == "All"
    assert "loading" in panels[0].figure.get_supxlabel()
    assert panels[0].figure.axes == panels


def test_factors_that_are_off_are_left_out(adata):
    for key in ("lfm", "lfm_sd"):
        adata.varm[key][:, 1] = 0
    titles = [axes.get_title() for axes in lfm.pl.loadings(adata, show=False)]
    assert titles == [f"factor {k}" for k in lfm.get.factors_df(adata)["factor"].unique()]
    assert "factor 1" not in titles


def test_at_most_six_factors_unless_asked(adata):
    rng = np.random.default_rng(0)
    adata.varm["lfm"] = rng.normal(size=(adata.n_vars, 8))
    adata.varm["lfm_sd"] = np.ones((adata.n_vars, 8))
    assert len(lfm.pl.loadings(adata, show=False)) == 6
    assert len(lfm.pl.loadings(adata, range(8), show=False)) == 8


def test_names_do_not_overlap(adata):
    (axes,) = lfm.pl.loadings(adata, 0, n_genes=25, show=False)
    axes.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in zip(boxes[:-1], boxes[1:], strict=True))


def test_several_factors_do_not_fit_one_axes(adata, ax):
    with pytest.raises(ValueError, match="`ax` has room for one panel, and there are 2 to draw"):
        lfm.pl.loadings(adata, [0, 1], ax=ax)


def test_nothing_to_draw_is_said(adata):
    adata.varm["lfm_sd"] = np.zeros_like(adata.varm["lfm_sd"])
    with pytest.raises(ValueError, match="There are no loadings to draw: every factor is off"):
        lfm.pl.loadings(adata)


def test_number_of_genes_is_checked(adata):
    with pytest.raises(TypeError, match="`n_genes` must be a whole number, found None"):
        lfm.pl.loadings(adata, n_genes=None)
