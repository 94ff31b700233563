from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


def test_draws_the_bound_and_the_effective_number(adata):
    table = lfm.get.rank_df(adata)
    axes = lfm.pl.rank(adata, show=False)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), table["n_factors"])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), table["elbo"])
    (right,) = [other for other in axes.figure.axes if other is not axes]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), table["effective"])
    assert right.get_ylabel() == "effective number of factors"


def test_marks_the_number_chosen(adata):
    axes = lfm.pl.rank(adata, show=False)
    assert list(axes.lines[1].get_xdata()) == [4, 4]
    assert [text.get_text() for text in axes.texts] == ["4 chosen"]


def test_a_number_that_was_given_has_no_curve(adata):
    del adata.uns["lfm"]["rank"]
    with pytest.raises(KeyError, match=r"was given, not chosen\. Run lfm\.tl\.fit\(adata, n_factors='auto'\)"):
        lfm.pl.rank(adata, show=False)
