from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm


@pytest.fixture
def listed(adata):
    """A table of 60 entries, some at one place."""
    rng = np.random.default_rng(0)
    n = 60
    adata.uns["lfm_anomaly"]["entries"] = pd.DataFrame(
        {
            "cell": rng.choice(adata.obs_names, n),
            "gene": rng.choice(adata.var_names, n),
            "y": rng.normal(size=n).round(1),
            "expected": rng.normal(size=n).round(1),
            "p": 0.0,
            "q": 0.0,
            "log_ratio": np.linspace(20, -5, n),
            "lfdr": np.linspace(0, 1, n),
            "direction": np.where(np.arange(n) % 2, "up", "down"),
        }
    )
    return adata


def points(axes):
    return axes.collections[0]


@pytest.mark.parametrize("color", ["log_ratio", "lfdr"])
def test_points_are_the_table_with_the_first_on_top(listed, color):
    axes = lfm.pl.anomalies(listed, color=color, show=False)
    table = lfm.get.anomalies_df(listed).iloc[::-1]
    np.testing.assert_array_equal(points(axes).get_offsets(), table[["expected", "y"]])
    np.testing.assert_array_equal(points(axes).get_array(), table[color])


def test_planted_entries_are_named(adata):
    axes = lfm.pl.anomalies(adata, n_labels=2, show=False)
    assert {"gene_3", "gene_5"} <= {text.get_text() for text in axes.texts}


def test_entries_of_a_gene_that_repeats_are_named_by_their_cells_too(listed):
    entries = listed.uns["lfm_anomaly"]["entries"]
    entries["gene"] = ["gene_1"] * 5 + [f"gene_{k}" for k in range(5, 40)] + ["gene_2"] * 20
    entries["cell"] = [f"cell_{k}" for k in range(60)]
    first = np.arange(60) < 8
    entries["y"] = np.where(first, np.arange(60), 3.5)  # with room for eight names
    entries["expected"] = np.where(first, 10 + np.arange(60) % 2, 10.5)
    axes = lfm.pl.anomalies(listed, n_labels=8, show=False)
    names = [text.get_text() for text in axes.texts[1:] if text.get_text()]
    assert {name for name in names if "\n" in name} == {f"gene_1\ncell_{k}" for k in range(5)}
    assert {"gene_5", "gene_6", "gene_7"} <= set(names)
    assert len(set(names)) == len(names)


def test_cells_that_look_alike_when_shortened_are_named_in_full(listed):
    entries = listed.uns["lfm_anomaly"]["entries"].iloc[:2].copy()
    cells = ["AAACATTGAGC-GATTACAGATTACA-1", "AAACATTGAGC-GATTTTTGATTACA-1"]
    listed.obs_names = [*cells, *listed.obs_names[2:]]
    entries["cell"], entries["gene"] = cells, "gene_1"
    entries[["expected", "y"]] = [[0.0, 0.0], [5.0, 5.0]]
    listed.uns["lfm_anomaly"]["entries"] = entries
    axes = lfm.pl.anomalies(listed, show=False)
    assert {f"gene_1\n{cell}" for cell in cells} <= {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("color", ["log_ratio", "lfdr"])
def test_every_point_stands_out_on_white(listed, color):
    """Contrast as the Web Content Accessibility Guidelines define it; yellow on white has 1.1."""
    colors = points(lfm.pl.anomalies(listed, color=color, show=False))
    colors = colors.get_cmap()(colors.norm(colors.get_array()))[:, :3]
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    assert contrast.min() > 1.8
    anomalous = listed.uns["lfm_anomaly"]["entries"].iloc[::-1]["log_ratio"].to_numpy() > 5
    assert contrast[anomalous].min() > contrast[~anomalous].max() or color == "lfdr"
    order = lfm.get.anomalies_df(listed).iloc[::-1][color].to_numpy()
    darker = contrast[np.argsort(order, kind="stable")]
    assert (np.diff(darker if color == "log_ratio" else darker[::-1]) >= -1e-9).all()


def test_labels(listed):
    axes = lfm.pl.anomalies(listed, color="lfdr", show=False)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("expected value", "observed value")
    assert points(axes).colorbar.ax.get_ylabel() == "local false discovery rate"
    assert points(axes).get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("depth", "note"),
    [(-0.125, "60 entries; correlation of cells' scores with depth -0.12"), (np.nan, "60 entries")],
)
def test_note_gives_the_correlation_with_depth(listed, depth, note):
    listed.uns["lfm_anomaly"]["depth_correlation"] = depth
    assert lfm.pl.anomalies(listed, show=False).texts[0].get_text() == note


def test_negative_ratios_do_not_stretch_the_colours(listed):
    listed.uns["lfm_anomaly"]["entries"].loc[59, "log_ratio"] = -500
    scatter = points(lfm.pl.anomalies(listed, show=False))
    assert scatter.get_clim()[0] == 0
    assert 10 < scatter.get_clim()[1] <= 20
    assert scatter.colorbar.extend == "both"


def test_names_stay_inside_and_do_not_overlap(listed):
    axes = lfm.pl.anomalies(listed, n_labels=60, show=False)
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts[1:] if text.get_text()]
    assert 10 < len(boxes) <= 60
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_no_names_when_none_are_asked_for(listed):
    assert len(lfm.pl.anomalies(listed, n_labels=0, show=False).texts) == 1


@pytest.mark.parametrize("choice", [{"direction": "up"}, {"gene": "gene_3"}, {"cell": ["cell_7", "cell_8"]}])
def test_draws_the_chosen_entries(adata, choice):
    table = lfm.get.anomalies_df(adata, **choice)
    assert 0 < len(table) < len(lfm.get.anomalies_df(adata))
    axes = lfm.pl.anomalies(adata, show=False, **choice)
    assert len(points(axes).get_offsets()) == len(table)


def test_entries_of_one_gene_are_named_by_cell(adata):
    axes = lfm.pl.anomalies(adata, gene="gene_3", show=False)
    assert "cell_7" in {text.get_text() for text in axes.texts}


def test_an_empty_table_says_so(adata):
    entries = adata.uns["lfm_anomaly"]["entries"]
    adata.uns["lfm_anomaly"]["entries"] = entries.iloc[:0]
    axes = lfm.pl.anomalies(adata, show=False)
    assert "no anomalous entries" in {text.get_text() for text in axes.texts}
    assert not axes.collections


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"color": "p"}, ValueError, r"`color` must be one of 'lfdr', 'log_ratio', found 'p'"),
        ({"n_labels": -1}, ValueError, r"`n_labels` must be at least 0, found -1"),
        ({"gene": "gene_99"}, KeyError, r"`gene`: var_names has no 'gene_99'. Did you mean"),
        ({"direction": "sideways"}, ValueError, r"`direction` must be one of 'up', 'down'"),
    ],
)
def test_a_wrong_argument_is_named(adata, arguments, error, message):
    with pytest.raises(error, match=message):
        lfm.pl.anomalies(adata, **arguments)
