from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgba

import scvi_lfm as lfm


def by_place(points):
    """Colour of each point, by its coordinates."""
    colors = np.broadcast_to(points.get_facecolors(), (len(points.get_offsets()), 4))
    return {tuple(place): tuple(color) for place, color in zip(points.get_offsets().data, colors, strict=True)}


def places(adata, across=0, up=1):
    return [tuple(place) for place in adata.obsm["X_lfm"][:, [across, up]].astype(float)]


def test_draws_every_cell_at_its_place(adata):
    axes = lfm.pl.factors(adata, factors=(2, 0), show=False)
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_lfm"][:, [2, 0]])


def test_labels_give_the_variance(adata):
    adata.uns["lfm"]["variance_ratio"] = np.array([0.5, 0.25, 0.125, 0.001])
    axes = lfm.pl.factors(adata, factors=(2, 0), show=False)
    assert axes.get_xlabel() == "factor 2 (12.5% of variance)"
    assert axes.get_ylabel() == "factor 0 (50.0% of variance)"


def test_groups_have_the_colours_of_the_legend(adata):
    axes = lfm.pl.factors(adata, "group", show=False)
    handles = axes.get_legend().legend_handles
    legend = {handle.get_label(): to_rgba(handle.get_color()) for handle in handles}
    assert list(legend) == ["A", "B", "C"]
    assert len(set(legend.values())) == 3
    drawn = {place: color for points in axes.collections for place, color in by_place(points).items()}
    assert [drawn[place] for place in places(adata)] == [legend[group] for group in adata.obs["group"]]
    assert axes.get_legend().get_title().get_text() == "group"


def test_groups_keep_the_colours_that_scanpy_gave_them(adata):
    adata.uns["group_colors"] = np.array(["#111111", "#222222", "#333333"])
    axes = lfm.pl.factors(adata, "group", show=False)
    colors = [to_rgba(handle.get_color()) for handle in axes.get_legend().legend_handles]
    assert colors == [to_rgba(color) for color in adata.uns["group_colors"]]


def test_many_groups_differ_in_colour_or_shape(adata):
    adata.obs["many"] = [f"_type {i % 23}" for i in range(adata.n_obs)]
    axes = lfm.pl.factors(adata, "many", show=False)
    handles = axes.get_legend().legend_handles
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 23
    assert sum(len(points.get_offsets()) for points in axes.collections) == adata.n_obs
    axes.figure.draw_without_rendering()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(adata.obs["many"])


def test_numbers_have_a_colour_bar(adata):
    axes = lfm.pl.factors(adata, "lfm_a", cmap="cividis", show=False)
    points = axes.collections[-1]
    drawn = dict(zip(map(tuple, points.get_offsets().data), points.get_array(), strict=True))
    np.testing.assert_allclose([drawn[place] for place in places(adata)], adata.obs["lfm_a"])
    assert points.get_cmap().name == "cividis"
    assert points.colorbar.ax.get_ylabel() == "lfm_a"


def test_a_gene_is_read_from_the_layer_of_the_fit(adata):
    adata.layers["other"] = -adata.X
    for layer, sign in ((None, 1), ("other", -1)):
        if layer:
            adata.uns["lfm"]["params"]["layer"] = layer
        points = lfm.pl.factors(adata, "gene_4", show=False).collections[-1]
        drawn = dict(zip(map(tuple, points.get_offsets().data), points.get_array(), strict=True))
        np.testing.assert_allclose([drawn[place] for place in places(adata)], sign * adata.X[:, 4])


@pytest.mark.parametrize("values", [["A", None] * 45, [1.5, np.nan] * 45])
def test_missing_values_are_grey_and_behind(adata, values):
    adata.obs["holes"] = values
    axes = lfm.pl.factors(adata, "holes", show=False)
    assert set(by_place(axes.collections[0]).values()) == {to_rgba("#d3d3d3")}
    assert [len(points.get_offsets()) for points in axes.collections] == [45, 45]


def test_several_colours_have_a_panel_each(adata):
    panels = lfm.pl.factors(adata, ["group", "lfm_a", "gene_4"], factors=(1, 2), show=False)
    assert [axes.get_title() for axes in panels] == ["group", "lfm_a", "gene_4"]
    for axes in panels:
        assert set(places(adata, 1, 2)) == {place for points in axes.collections for place in by_place(points)}
        assert axes.get_xlabel().startswith("factor 1 (")
    assert len(panels[0].get_legend().get_texts()) == 3
    for axes, values in zip(panels[1:], (adata.obs["lfm_a"], adata.X[:, 4]), strict=True):
        points = axes.collections[-1]
        drawn = dict(zip(map(tuple, points.get_offsets().data), points.get_array(), strict=True))
        np.testing.assert_allclose([drawn[place] for place in places(adata, 1, 2)], values)


def test_a_list_gives_a_list(adata):
    (axes,) = lfm.pl.factors(adata, ["group"], show=False)
    assert axes.get_title() == "group"


def test_a_wide_legend_leaves_room_for_the_cells(adata):
    adata.obs["many"] = [f"a type with a long name {i % 45}" for i in range(adata.n_obs)]
    axes = lfm.pl.factors(adata, "many", show=False)
    axes.figure.draw_without_rendering()
    assert axes.get_window_extent().width / axes.figure.dpi > 1.7
    assert axes.figure.get_figwidth() > 6.4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"color": []}, ValueError, r"`color` names nothing"),
        ({"color": ["group", "grop"]}, KeyError, r"called 'grop'. Did you mean 'group'"),
        ({"color": "grop"}, KeyError, r"neither a column of obs nor a gene is called 'grop'. Did you mean 'group'"),
        ({"factors": (0, 4)}, ValueError, r"asks for factor 4, but the fit has 4, counted from 0 to 3"),
        ({"factors": (0, 1, 2)}, ValueError, r"`factors` must be two factors, such as \(0, 1\), found \(0, 1, 2\)"),
        ({"factors": 1}, ValueError, r"`factors` must be two factors, such as \(0, 1\), found 1"),
        ({"factors": (0.5, 1)}, TypeError, r"`factors` must be a whole number, found 0.5"),
    ],
)
def test_a_wrong_argument_is_named(adata, arguments, error, message):
    with pytest.raises(error, match=message):
        lfm.pl.factors(adata, **arguments)


def test_a_deleted_embedding_is_named(adata):
    del adata.obsm["X_lfm"]
    with pytest.raises(KeyError, match=r"obsm has no 'X_lfm'. Did you mean 'X_lfm_sd'"):
        lfm.pl.factors(adata)


def test_values_that_are_gone_are_named(adata):
    gene, adata.X = adata.var_names[3], None
    with pytest.raises(KeyError, match=r"genes are read from X, which the fit read and `adata` has no more"):
        lfm.pl.factors(adata, gene)
    adata.uns["lfm"]["params"]["layer"] = "counts"
    with pytest.raises(KeyError, match=r"genes are read from layers\['counts'\], which"):
        lfm.pl.factors(adata, gene)


def test_leaves_numpys_global_seed_alone(adata):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    lfm.pl.factors(adata, "group", show=False)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
