from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


def set_elbo(adata, value, rank0):
    adata.uns["lfm"]["elbo"] = {"epoch": np.arange(1.0, len(value) + 1), "value": np.asarray(value), "rank0": rank0}


def test_draws_value_by_epoch(adata):
    table = lfm.get.elbo_df(adata)
    line = lfm.pl.elbo(adata, show=False).lines[0]
    np.testing.assert_array_equal(line.get_xdata(), table["epoch"])
    np.testing.assert_array_equal(line.get_ydata(), table["value"])


def test_no_factors_is_a_line_where_it_fits(adata):
    set_elbo(adata, [-1.8, -1.2, -1.0], -2.0)
    axes = lfm.pl.elbo(adata, show=False)
    assert list(axes.lines[1].get_ydata()) == pytest.approx([-2, -2])
    assert [text.get_text() for text in axes.texts] == ["without factors"]


def test_no_factors_is_written_where_it_would_squeeze_the_curve(adata):
    set_elbo(adata, [-1.02, -1.01, -1.0], -2.0)
    axes = lfm.pl.elbo(adata, show=False)
    assert len(axes.lines) == 1
    assert axes.get_ylim()[0] > -1.1
    assert [text.get_text() for text in axes.texts] == ["without factors: -2"]


def test_axis_on_the_right_is_the_share_of_the_gain(adata):
    set_elbo(adata, [-1.8, -1.2, -1.0], -2.0)
    axes = lfm.pl.elbo(adata, show=False)
    axes.figure.draw_without_rendering()
    (right,) = axes.child_axes
    low, high = axes.get_ylim()
    assert right.get_ylim() == pytest.approx((100 * (low + 2), 100 * (high + 2)))
    assert right.get_ylabel() == "share of the factors' gain (%)"


@pytest.mark.parametrize("rank0", [-1.0, np.nan])
def test_factors_that_gain_nothing_have_no_share(adata, rank0):
    set_elbo(adata, [-1.0, -1.0], rank0)
    assert not lfm.pl.elbo(adata, show=False).child_axes
