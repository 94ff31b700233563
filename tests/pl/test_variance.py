from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


def heights(axes):
    return np.array([bar.get_height() for bar in axes.patches])


def test_bars_and_line_are_the_table_in_percent(adata):
    table = lfm.get.variance_df(adata)
    axes = lfm.pl.variance(adata, show=False)
    np.testing.assert_allclose(heights(axes), 100 * table["share"])
    np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in axes.patches], table["factor"])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * table["share"].cumsum())


def test_labels(adata):
    axes = lfm.pl.variance(adata, show=False)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("factor", "share of the factors' variance (%)")
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"each factor", "cumulative"}
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial", "ordinal"])
def test_bars_mean_the_same_under_every_likelihood(fit_of, likelihood):
    """The factors' variance over cells, as a share of its sum: columns of A have mean zero, those of B length one."""
    adata = fit_of(likelihood)
    of_factors = np.square(adata.obsm["X_lfm"].astype(float)).mean(0)
    axes = lfm.pl.variance(adata, show=False)
    np.testing.assert_allclose(heights(axes), 100 * of_factors / of_factors.sum(), rtol=1e-3)
    assert axes.get_ylabel() == "share of the factors' variance (%)"


def test_the_second_axis_gives_the_share_of_all_variance_where_there_is_one(fit_of):
    adata = fit_of("normal")
    axes = lfm.pl.variance(adata, show=False)
    axes.figure.draw_without_rendering()
    (right,) = axes.child_axes
    whole = adata.uns["lfm"]["variance_ratio"].sum()
    assert 0.2 < whole < 0.98
    assert right.get_ylim() == pytest.approx(np.array(axes.get_ylim()) * whole)
    assert right.get_ylabel() == "share of all variance (%)"
    assert [text.get_text() for text in axes.texts] == [f"all factors: {whole:.1%} of the variance of the values"]
    assert not lfm.pl.variance(fit_of("negative_binomial"), show=False).child_axes


def test_factors_that_are_all_off_have_no_bars(adata):
    adata.uns["lfm"]["variance_ratio"] = np.zeros(4, dtype=np.float32)
    axes = lfm.pl.variance(adata, show=False)
    assert not heights(axes).any()
    assert not axes.child_axes
    axes.figure.draw_without_rendering()
