"""The page of `pl.explorer` as text: what it carries, and which mistakes are refused."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from explorer_page import read_page
from scvi_lfm.pl import _explorer
from scvi_lfm.pl._explorer import call

# fits whose covariances are stored in different forms
KINDS = [
    ("normal", {}),
    ("normal", {"noise": "cell_gene"}),
    ("normal", {"covariates": "odd"}),
    ("normal", {"observed": "stored"}),
    pytest.param("bernoulli", {}, marks=pytest.mark.slow),
    ("negative_binomial", {}),
    pytest.param("negative_binomial", {"covariates": "odd"}, marks=pytest.mark.slow),
    pytest.param("ordinal", {}, marks=pytest.mark.slow),
]
HOSTILE = "</script><script>alert('x')</script> \"quoted\" & ünïcødé 😀"


@pytest.fixture(scope="module", autouse=True)
def fit(fit_of):
    """Made before a test, and all that it imports with it."""
    return fit_of()


@pytest.fixture
def cells(fit):
    """A small fit with a plane to draw."""
    adata = fit.copy()
    adata.obs["group"] = pd.Categorical(np.repeat(["one", "two"], 20))
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(40, 2))
    return adata


def test_a_page_is_one_file(cells, tmp_path):
    page = lfm.pl.explorer(cells, tmp_path / "page.html")
    assert page.path == tmp_path / "page.html"
    assert (page.n_cells, page.n_genes, page.n_bytes) == (40, 30, page.path.stat().st_size)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert str(page).endswith("page.html: 40 cells, 30 genes, 0.3 MB")
    assert Path(page) == page.path


@pytest.mark.parametrize(("likelihood", "options"), KINDS)
def test_genes_follow_from_the_page(likelihood, options, fit_of, tmp_path):
    """As rank_genes has them: to rounding where covariances are common, else the lfsr to 0.02."""
    adata = fit_of(likelihood, **options)
    page = read_page(lfm.pl.explorer(adata, tmp_path / "page.html", basis="X_lfm", dimensions=(0, 1)).path)
    exact = likelihood == "normal" and set(options) <= {"covariates"}
    assert page.header["exact"].startswith("Scores, sd and lfsr" if exact else "Scores are those")
    for cells in (np.arange(40) < 7, np.arange(40) % 2 == 1, np.arange(40) == 3):
        lfm.tl.rank_genes(adata, mask_obs=cells)
        expected = lfm.get.rank_genes_df(adata).set_index("names")
        found = page.contrast(cells, ~cells).loc[expected.index]
        # half precision: an error of at most 2^-12 of the largest value of a factor, in each of the terms of a score
        rounding = 2.0**-11 * np.abs(page.genes).max() * np.abs(page.cells).max() * page.cells.shape[1]
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=rounding)
        if exact:
            np.testing.assert_allclose(found["sd"], expected["sd"], rtol=2e-3)
        bound = 0.4 * rounding / expected["sd"].min() if exact else 0.02
        np.testing.assert_allclose(found["lfsr"], expected["lfsr"], atol=bound)


def test_a_fit_without_factors(tmp_path):
    """Nothing but activity is left to rank by."""
    adata = lfm.datasets.simulate(60, 20, 1)
    adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    lfm.tl.fit(adata, 1, progress=False)
    adata.obsm["plane"] = np.random.default_rng(0).normal(size=(60, 2))
    adata.uns["lfm"]["prior_cell_cov"][1:] = adata.uns["lfm"]["prior_cell_cov"][:, 1:] = 0
    for key in ("X_lfm", "X_lfm_sd"):
        adata.obsm[key][:] = 0
    page = read_page(lfm.pl.explorer(adata, tmp_path / "page.html", basis="plane").path)
    assert page.header["n_factors"] == 0
    assert page.genes.shape == (20, 1)


def test_what_a_page_carries(cells, tmp_path):
    cells.obs["flag"] = np.arange(40) % 3 == 0
    cells.obs["many"] = [f"label {k}" for k in range(40)]
    cells.obs["depth"] = np.linspace(0, 1, 40)
    cells.obs.loc[cells.obs_names[5], "group"] = np.nan
    cells.uns["group_colors"] = ["red", "#00ff00"]
    page = read_page(lfm.pl.explorer(cells, tmp_path / "page.html", color="depth", title="My cells").path)
    assert page.arrays["cell_names"] == list(cells.obs_names)
    assert page.arrays["gene_names"] == list(cells.var_names)
    names = [column["name"] for column in page.header["columns"]]
    assert names == ["depth", "odd", "group", "flag", "many"]
    assert page.header["first"] == {"column": 0}
    assert page.header["columns"][2]["labels"] == ["one", "two"]
    assert page.header["columns"][2]["colours"] == ["#ff0000", "#00ff00"]
    codes = np.repeat([0, 1], 20)
    codes[5] = 2  # missing
    np.testing.assert_array_equal(page.arrays["column_2"], codes)
    np.testing.assert_allclose(page.arrays["column_0"], cells.obs["depth"], rtol=1e-6)
    for axis, place in enumerate(("x", "y")):
        low, high = (page.header["axes"][axis][end] for end in ("low", "high"))
        found = low + page.arrays[place] * (high - low) / 65_535
        np.testing.assert_allclose(found, cells.obsm["X_umap"][:, axis], atol=(high - low) / 65_535)
    assert "<title>My cells</title>" in page.text


def test_columns_that_are_asked_for(cells, tmp_path):
    cells.obs["depth"] = np.linspace(0, 1, 40)
    for asked, found in (([], []), (["depth"], ["depth"]), (["group", "odd"], ["group", "odd"])):
        page = read_page(lfm.pl.explorer(cells, tmp_path / "page.html", columns=asked).path)
        assert [column["name"] for column in page.header["columns"]] == found
    page = read_page(lfm.pl.explorer(cells, tmp_path / "page.html", color=["gene_3", "odd"], columns=["group"]).path)
    assert page.header["first"] == {"gene": 3}
    assert [column["name"] for column in page.header["columns"]] == ["odd", "group"]


def test_unused_groups_are_left_out(cells, tmp_path):
    cells.uns["group_colors"] = ["#111111", "#222222"]
    page = read_page(lfm.pl.explorer(cells[20:], tmp_path / "page.html", columns=["group"]).path)
    assert page.header["columns"][0]["labels"] == ["two"]
    assert page.header["columns"][0]["colours"] == ["#222222"]
    assert page.header["n_cells"] == 20


def test_genes_that_were_not_fitted_are_left_out(tmp_path):
    adata = lfm.datasets.simulate(40, 30, 2)
    adata.var["chosen"] = np.arange(30) % 2 == 0
    lfm.tl.fit(adata, 2, mask_var="chosen", progress=False)
    page = read_page(lfm.pl.explorer(adata, tmp_path / "page.html", basis="X_lfm", dimensions=(0, 1)).path)
    assert page.arrays["gene_names"] == list(adata.var_names[::2])
    with pytest.raises(KeyError, match=r"`color`: 'gene_1' was not fitted"):
        lfm.pl.explorer(adata, tmp_path / "page.html", basis="X_lfm", dimensions=(0, 1), color="gene_1")


def test_similar_genes_follow_from_the_page(cells, tmp_path):
    page = read_page(lfm.pl.explorer(cells, tmp_path / "page.html").path)
    expected = lfm.tl.similar_genes(cells, "gene_4", n_top=29).set_index("names")["correlation"]
    B, variance = page.genes[:, 1:], page.arrays["gene_population_variance"]
    covariance = B @ page.arrays["population"].reshape(2, 2) @ B[4]
    correlation = pd.Series(covariance / np.sqrt(variance * variance[4]), page.arrays["gene_names"])
    np.testing.assert_allclose(correlation[expected.index], expected, rtol=1e-6)


def test_names_are_no_part_of_the_text(cells, tmp_path):
    """They come in base64, but for the title, whose signs are escaped."""
    cells.obs_names = [HOSTILE, *cells.obs_names[1:]]
    cells.var_names = [HOSTILE, *cells.var_names[1:]]
    cells.obs[HOSTILE] = pd.Categorical([HOSTILE, *["b"] * 39])
    page = read_page(lfm.pl.explorer(cells, tmp_path / "page.html", color=HOSTILE, title=HOSTILE).path)
    assert "alert('x')" not in page.text
    assert "ünïcødé 😀</title>" in page.text
    assert page.arrays["cell_names"][0] == page.arrays["gene_names"][0] == page.header["title"] == HOSTILE
    assert page.header["columns"][0]["labels"][0] == HOSTILE


def test_only_the_page_s_own_script_may_run(cells, tmp_path):
    text = lfm.pl.explorer(cells, tmp_path / "page.html").path.read_text()
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#x27;", "'")
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}' 'unsafe-eval';")
    assert "connect-src" not in policy


def test_licences_of_what_the_page_is_made_of_lie_beside_it():
    text = (Path(_explorer.__file__).parent / "THIRD_PARTY_LICENSES.txt").read_text()
    lock = Path(__file__).parents[2] / "explorer" / "package-lock.json"
    for name in re.findall(
        r'"node_modules/([^"]+)": \{\n(?:(?!\n    \}).)*?"license"', lock.read_text(), flags=re.DOTALL
    ):
        if "esbuild" not in name:
            assert f"\n{name.split('node_modules/')[-1]} " in text
    assert "http://" not in lock.read_text()
    assert "resolved" not in lock.read_text()


def test_the_anndata_stays_as_it_is(cells, tmp_path):
    before = cells.copy()
    lfm.pl.explorer(cells[5:35], tmp_path / "view.html", color=["group", "gene_1"])
    lfm.pl.explorer(cells, tmp_path / "page.html", color="group")
    assert set(cells.uns) == set(before.uns)
    assert set(cells.obsm) == set(before.obsm)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    pd.testing.assert_frame_equal(cells.var, before.var)


def test_the_same_page_twice(cells, tmp_path):
    pages = [lfm.pl.explorer(cells, tmp_path / f"{k}.html").path.read_bytes() for k in range(2)]
    assert pages[0] == pages[1]


# files


def test_an_earlier_page_is_replaced_and_other_files_are_not(cells, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(ValueError, match=r"exists and is no page of lfm\.pl\.explorer\. .*overwrite=True"):
        lfm.pl.explorer(cells, path)
    assert path.read_text() == "<html>mine</html>"
    first = lfm.pl.explorer(cells, path, overwrite=True)
    again = lfm.pl.explorer(cells, path, color="gene_2")
    assert first.path == again.path
    assert read_page(path).header["first"] == {"gene": 2}


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(cells, tmp_path, monkeypatch):
    path = lfm.pl.explorer(cells, tmp_path / "page.html").path
    before = path.read_bytes()

    def breaks(*_):
        yield b"<!doctype html>"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, "page_parts", breaks)
    with pytest.raises(OSError, match="No space left"):
        lfm.pl.explorer(cells, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_notebook_shows_the_page(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = lfm.pl.explorer(cells, "my cells.html")
    assert page.path == tmp_path / "my cells.html"
    assert '<iframe src="my%20cells.html"' in page._repr_html_()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert f'<iframe src="{page.path.as_uri()}"' in page._repr_html_()


# mistakes

MISTAKES = {
    "no basis": ({"basis": "X_tsne"}, KeyError, r"`basis`: obsm has no 'X_tsne'\. There are: 'A', 'X_lfm', "),
    "near basis": ({"basis": "X_umpa"}, KeyError, "Did you mean 'X_umap'"),
    "no string": ({"basis": 3}, TypeError, "`basis` must be a key of obsm, found 3"),
    "three columns": ({"basis": "space"}, ValueError, r"obsm\['space'\] has 3 column\(s\), and a plot has 2.*\(0, 1\)"),
    "no dimension": (
        {"basis": "space", "dimensions": (0, 3)},
        ValueError,
        "column 3, and obsm.* has 3",
    ),
    "one dimension": ({"dimensions": (0,)}, ValueError, "must be two columns of the basis"),
    "not finite": ({"basis": "holes"}, ValueError, r"obsm\['holes'\] is not finite in 2 cell\(s\), first 'cell_1'"),
    "colour": ({"color": "grup"}, KeyError, "`color`: 'grup' is neither a column of obs nor a fitted gene.*'group'"),
    "colours": ({"color": ["group", "gene_300"]}, KeyError, "'gene_300' is neither.*'gene_3'"),
    "columns": ({"columns": ["grup"]}, KeyError, r"`columns`: obs has no column 'grup'\. Did you mean 'group'"),
    "lists": ({"color": "lists"}, TypeError, "neither numbers nor labels"),
    "twice": ({"color": "twice"}, ValueError, "labels of different types that are all written '1'"),
    "suffix": ({"path": "page.png"}, ValueError, r"`path` must end in \.html"),
    "folder": ({"path": "nowhere/page.html"}, ValueError, r"`path`: there is no folder '.*nowhere'"),
    "no path": ({"path": None}, TypeError, "`path` must be the name of a file, found None"),
    "a folder": ({"path": "folder.html"}, ValueError, "is a folder"),
    "title": ({"title": 3}, TypeError, "`title` must be a string"),
    "key": ({"key": "lmf"}, KeyError, "lmf"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_and_nothing_is_written(cells, tmp_path, monkeypatch, name):
    options, kind, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    cells.obsm["space"] = np.zeros((40, 3))
    cells.obsm["holes"] = np.where(np.arange(80).reshape(40, 2) // 3 == 1, np.nan, 1.0)
    cells.obs["lists"] = [[k] for k in range(40)]
    cells.obs["twice"] = pd.Series([1, "1"] * 20, cells.obs_names, dtype=object)
    with pytest.raises(kind, match=message):
        lfm.pl.explorer(cells, **{"path": "page.html"} | options)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_too_many_cells(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(call, "MOST_CELLS", 15)
    with pytest.raises(ValueError, match=r"has 40 cells, and a page holds at most 15\. .*adata\[::3\]"):
        lfm.pl.explorer(cells, tmp_path / "page.html")


def test_too_many_groups(cells, tmp_path, monkeypatch):
    monkeypatch.setattr("scvi_lfm.pl._explorer.obs.MOST_GROUPS", 10)
    cells.obs["barcode"] = cells.obs_names
    page = read_page(lfm.pl.explorer(cells, tmp_path / "page.html").path)
    assert "barcode" not in [column["name"] for column in page.header["columns"]]
    monkeypatch.setattr("scvi_lfm.pl._explorer.obs.MOST_GROUPS_ASKED", 20)
    with pytest.raises(ValueError, match=r"obs\['barcode'\] holds 40 different labels, and a page shows at most 20"):
        lfm.pl.explorer(cells, tmp_path / "page.html", color="barcode")
