from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


def test_points_and_whiskers_are_the_table(adata):
    (axes,) = lfm.pl.rank_genes(adata, "B", n_genes=6, show=False)
    table = lfm.get.rank_genes_df(adata, "B").head(6)
    points = axes.lines[0]
    np.testing.assert_allclose(points.get_xdata(), table["scores"])
    np.testing.assert_array_equal(points.get_ydata(), range(6))
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table["names"])
    half = [np.ptp(segment[:, 0]) / 2 for segment in axes.collections[0].get_segments()]
    np.testing.assert_allclose(half, 1.96 * table["sd"], rtol=1e-4)


def test_one_panel_for_each_group(adata):
    panels = lfm.pl.rank_genes(adata, show=False)
    assert [axes.get_title() for axes in panels] == ["A", "B", "C"]
    assert [axes.get_title() for axes in lfm.pl.rank_genes(adata, ["C", "A"], show=False)] == ["C", "A"]


@pytest.mark.parametrize(("reference", "words"), [("rest", "the other cells"), ("C", "C"), (None, "the average cell")])
def test_axis_names_the_reference(adata, reference, words):
    lfm.tl.rank_genes(adata, "group", groups=["A"], reference=reference)
    (axes,) = lfm.pl.rank_genes(adata, show=False)
    expected = f"score: difference in expected expression\nfrom {words}, with 95% posterior interval"
    assert axes.get_xlabel() == expected
    assert axes.get_title() == "A"


def test_cells_of_a_mask_are_called_selected(adata):
    lfm.tl.rank_genes(adata, mask_obs=(adata.obs["group"] == "B").to_numpy(), key_added="mine")
    (axes,) = lfm.pl.rank_genes(adata, key="mine", show=False)
    assert axes.get_title() == "selected"


def test_long_names_are_wrapped(adata):
    long = "a type of cell with a name that is far too long"
    adata.obs["group"] = adata.obs["group"].cat.rename_categories({"B": long})
    lfm.tl.rank_genes(adata, "group")
    title = lfm.pl.rank_genes(adata, show=False)[1].get_title()
    assert title.replace("\n", " ") == long
    assert max(map(len, title.split("\n"))) <= 26


@pytest.mark.parametrize(
    ("n", "shape"), [(2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (6, (2, 3)), (7, (3, 3)), (10, (4, 3))]
)
def test_grid_is_as_wide_as_a_notebook_shows_it(adata, n, shape):
    adata.obs["many"] = [f"{i % n}" for i in range(adata.n_obs)]
    lfm.tl.rank_genes(adata, "many")
    panels = lfm.pl.rank_genes(adata, n_genes=3, show=False)
    assert len(panels) == n
    assert panels[0].get_gridspec().get_geometry() == shape
    assert panels[0].figure.axes == panels
    assert panels[0].figure.get_figwidth() <= 6.5, "a notebook shrinks wider figures, and their letters with them"


def test_several_groups_do_not_fit_one_axes(adata, ax):
    with pytest.raises(ValueError, match="`ax` has room for one panel, and there are 3 to draw"):
        lfm.pl.rank_genes(adata, ax=ax)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": "D"}, KeyError, r"has no group 'D'. There are: 'A', 'B', 'C'"),
        ({"groups": []}, ValueError, r"`group` names nothing"),
        ({"n_genes": 0}, ValueError, r"`n_genes` must be at least 1, found 0"),
    ],
)
def test_a_wrong_argument_is_named(adata, arguments, error, message):
    with pytest.raises(error, match=message):
        lfm.pl.rank_genes(adata, **arguments)


def test_never_speaks_of_significance(adata):
    text = lfm.pl.rank_genes.__doc__ + lfm.get.rank_genes_df.__doc__
    for axes in lfm.pl.rank_genes(adata, show=False):
        text += axes.get_title() + axes.get_xlabel()
    assert "p-value" not in text
    assert "significan" not in text
