"""What every plot has in common."""

from __future__ import annotations

import inspect

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scvi_lfm as lfm

# the arguments with which each plot has one panel
ONE_PANEL = {
    "anomalies": {},
    "elbo": {},
    "factors": {"color": "group"},
    "loadings": {"factors": 0},
    "rank": {},
    "rank_genes": {"groups": "A"},
    "uncertainty": {},
    "variance": {},
}
SHARED = ["title", "ax", "show", "save", "return_fig"]
plots = pytest.mark.parametrize("name", ONE_PANEL)


def draw(name, adata, **more):
    drawn = getattr(lfm.pl, name)(adata, **ONE_PANEL[name] | more)
    return drawn[0] if isinstance(drawn, list) else drawn


def test_every_plot_is_tested():
    # calibration draws a report, and explorer writes a page: tests of their own
    assert set(lfm.pl.__all__) == {*ONE_PANEL, "calibration", "explorer"}


@pytest.mark.parametrize("name", [*ONE_PANEL, "calibration"])
def test_every_plot_ends_with_the_same_arguments(name):
    parameters = inspect.signature(getattr(lfm.pl, name)).parameters
    assert list(parameters)[-len(SHARED) :] == SHARED
    assert {parameters[shared].default for shared in SHARED} == {None, False}
    assert parameters["return_fig"].default is False


@plots
def test_signature(name):
    parameters = inspect.signature(getattr(lfm.pl, name)).parameters
    assert next(iter(parameters)) == "adata"
    assert len(parameters) <= 7 + len(SHARED)
    positional = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert len(positional) <= 2
    document = inspect.getdoc(getattr(lfm.pl, name))
    assert all(f"\n{parameter}\n    " in document for parameter in parameters)


@plots
def test_draws_on_the_axes_given_and_nowhere_else(name, adata, ax):
    other = plt.figure()
    figures = plt.get_fignums()
    assert draw(name, adata, ax=ax, show=False) is ax
    assert ax.has_data()
    assert plt.get_fignums() == figures
    assert plt.gcf() is other


@plots
def test_makes_one_figure(name, adata):
    axes = draw(name, adata, show=False)
    assert isinstance(axes, Axes)
    assert plt.get_fignums() == [axes.figure.number]


@plots
def test_axes_say_what_they_show(name, adata):
    axes = draw(name, adata, title="My title", show=False)
    assert axes.get_title() == "My title"
    assert axes.get_xlabel()
    assert axes.get_ylabel() or len(axes.get_yticklabels()) > 1


@plots
@pytest.mark.parametrize("settings", [(True, None), (False, None), (False, True), (True, False)])
@pytest.mark.half_slow
def test_shows_or_returns_as_scanpy_is_set(name, adata, monkeypatch, settings):
    autoshow, show = settings
    expected, shown = autoshow if show is None else show, []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    before = sc.settings.autoshow
    try:
        sc.settings.autoshow = autoshow
        assert (draw(name, adata, show=show) is None) == expected
        assert len(shown) == expected
    finally:
        sc.settings.autoshow = before


@plots
def test_returns_the_figure_if_asked(name, adata, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a figure that is returned is not shown"))
    figure = getattr(lfm.pl, name)(adata, **ONE_PANEL[name], return_fig=True, show=True)
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == [figure.number]


@plots
def test_saves_where_it_is_told(name, adata, tmp_path):
    path = tmp_path / f"{name}.png"
    assert draw(name, adata, show=False, save=path) is not None
    height, width, _ = plt.imread(path).shape
    assert min(height, width) > 100
    assert not sorted(set(tmp_path.iterdir()) - {path})


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_the_ending_says_what_kind_of_file_is_saved(adata, tmp_path, ending):
    path = tmp_path / f"figure.{ending}"
    lfm.pl.rank(adata, show=False, save=str(path))
    assert path.read_bytes()[:5] in {b"%PDF-", b"<?xml", b"\x89PNG\r"}


@plots
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"save": True}, TypeError, r"`save` must be the path of a file, such as 'figure.png', found True"),
        (
            {"save": "figure.docx"},
            ValueError,
            r"`save` must be the path of a file that ends in one of \..*, found 'fig",
        ),
        ({"save": "figure"}, ValueError, r"`save` must be the path of a file that ends in one of \..*, found 'figure'"),
        ({"save": "no/figure.png"}, ValueError, r"`save`: there is no folder 'no' to put 'figure.png' into"),
        ({"show": "no"}, TypeError, r"`show` must be True or False, found 'no'"),
        ({"return_fig": 1}, TypeError, r"`return_fig` must be True or False, found 1"),
    ],
)
def test_what_is_asked_to_come_out_is_checked_before_a_figure_is_made(name, adata, arguments, error, message):
    with pytest.raises(error, match=message):
        draw(name, adata, **arguments)
    assert not plt.get_fignums()


SEVERAL = {
    "factors": {"color": ["group", "gene_1"]},
    "loadings": {"factors": [0, 1]},
    "rank_genes": {"groups": ["A", "B"]},
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("kind", [list, tuple, np.asarray, lambda two: np.reshape(two, (2, 1))])
def test_several_panels_take_as_many_axes(name, kind, adata):
    figure, two = plt.subplots(1, 2)
    panels = getattr(lfm.pl, name)(adata, **SEVERAL[name], ax=kind(list(two)), title="Mine", show=False)
    assert panels == list(two)
    assert all(axes.has_data() and axes.get_xlabel() and axes.get_title().startswith("Mine: ") for axes in panels)
    assert plt.get_fignums() == [figure.number]
    assert figure.get_suptitle() + figure.get_supxlabel() == "", "the figure is another's"


@pytest.mark.parametrize("name", SEVERAL)
def test_too_few_or_too_many_axes_are_counted(name, adata, ax):
    three = plt.subplots(1, 3)[1]
    with pytest.raises(ValueError, match="`ax` has room for one panel, and there are 2 to draw.* pass 2 axes"):
        getattr(lfm.pl, name)(adata, **SEVERAL[name], ax=ax, show=False)
    with pytest.raises(ValueError, match="`ax` has room for 3 panels, and there is 1 to draw"):
        draw(name, adata, ax=three, show=False)
    with pytest.raises(TypeError, match="`ax` must be a matplotlib Axes, found NoneType"):
        draw(name, adata, ax=[None], show=False)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_title_over_several_panels(name, adata):
    panels = getattr(lfm.pl, name)(adata, **SEVERAL[name], title="My title", show=False)
    assert panels[0].figure.get_suptitle() == "My title"
    assert "My title" not in {axes.get_title() for axes in panels}


@plots
def test_leaves_the_anndata_alone(name, adata, fitted):
    draw(name, adata, show=False)
    assert set(adata.uns) == set(fitted.uns)
    for field in ("obs", "var"):
        assert getattr(adata, field).equals(getattr(fitted, field))
    for field in ("obsm", "varm"):
        for key, values in getattr(fitted, field).items():
            np.testing.assert_array_equal(getattr(adata, field)[key], values)


@plots
def test_draws_a_slice_without_copying_it(name, adata):
    view = adata[10:60, 5:30]
    assert draw(name, view, show=False).has_data()
    assert view.is_view


@pytest.fixture(scope="module")
def read(fitted, tmp_path_factory):
    """The fit from a file; not to be written into."""
    path = tmp_path_factory.mktemp("plots") / "fit.h5ad"
    fitted.write_h5ad(path)
    return ad.read_h5ad(path)


@plots
def test_draws_the_same_from_a_file(name, adata, read):
    first, again = (draw(name, data, show=False) for data in (adata, read))
    assert first.get_xlim() == again.get_xlim()
    assert first.get_ylim() == again.get_ylim()
    assert [t.get_text() for t in first.texts] == [t.get_text() for t in again.texts]


@plots
def test_a_missing_key_is_named_before_a_figure_is_made(name, adata):
    with pytest.raises(KeyError, match=r"uns has no 'nothing'.*Run lfm\.tl\.\w+\(adata.*key_added='nothing'\) first"):
        draw(name, adata, key="nothing")
    assert not plt.get_fignums()


@plots
def test_ax_must_be_axes(name, adata):
    with pytest.raises(TypeError, match="`ax` must be a matplotlib Axes, found Figure"):
        draw(name, adata, ax=plt.figure())
