"""The page of `pl.explorer` in a browser: what it answers, against the tools that it repeats."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from chromium import browser, missing, prefer, requests, show

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad
    from selenium.webdriver import Chrome

# where they must run, a missing browser fails them
REQUIRED = os.environ.get("SCVI_LFM_BROWSER") == "required"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None and not REQUIRED, reason=str(missing())),
    # selenium closes its sockets when it is collected
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TYPE = "facs_celltype"
HOSTILE = '<img src=x onerror=alert(1)><script>window.broken = true</script> "quoted" & ünïcødé 😀'
RANKING = "return app.ranking.result ? app.ranking.top(1e9) : null"
SELECTED = "return Array.from(app.sets[arguments[0]]?.cells ?? [])"
GROUP = """
const column = app.labelled.find((column) => column.name === arguments[0]);
app.selectGroup(column, column.labels.indexOf(arguments[1]));
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Chrome:
    with browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module", autouse=True)
def normal(pbmc_fitted: ad.AnnData) -> ad.AnnData:
    return pbmc_fitted.copy()


@pytest.fixture(scope="module")
def counts() -> ad.AnnData:
    """Covariances of their own for all cells and genes: a quarter of the cells, and their most frequent genes."""
    adata = lfm.datasets.pbmc_sorted()[::4]
    totals = np.asarray(adata.X.sum(0)).ravel()
    adata = adata[:, np.argsort(-totals)[:600]].copy()
    lfm.tl.fit(adata, 10, progress=False)
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def opened(driver: Chrome, adata: ad.AnnData, path: Path, **options: object) -> None:
    options = {"basis": "X_lfm", "dimensions": (0, 1), "color": TYPE} | options
    show(driver, lfm.pl.explorer(adata, path, **options).path)


@pytest.fixture
def page(driver: Chrome, normal: ad.AnnData, folder: Path) -> Chrome:
    opened(driver, normal, folder / "normal.html")
    return driver


def compare(driver: Chrome, adata: ad.AnnData, lfsr: float) -> None:
    """The table of the page against that of rank_genes in `adata`."""
    found = pd.DataFrame(driver.execute_script(RANKING)).set_index("name")
    expected = lfm.get.rank_genes_df(adata).set_index("names").loc[found.index]
    assert len(found) == adata.n_vars
    scale = expected["scores"].abs().max()
    np.testing.assert_allclose(found["score"], expected["scores"], atol=1e-3 * scale)
    np.testing.assert_allclose(found["lfsr"].astype(float), expected["lfsr"], atol=lfsr)
    assert found["score"].is_monotonic_decreasing


def circle(adata: ad.AnnData, group: str, radius: float) -> list[list[float]]:
    """Around the middle of a group's cells, in the plane of the page."""
    cells = adata.obsm["X_lfm"][(adata.obs[TYPE] == group).to_numpy(), :2]
    angles = np.linspace(0, 2 * np.pi, 40)[:-1]
    points = np.median(cells, axis=0) + radius * np.column_stack([np.cos(angles), np.sin(angles)])
    return points.astype(float).tolist()


def text(driver: Chrome, name: str) -> str:
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", name)


@pytest.mark.parametrize(("kind", "lfsr"), [("normal", 0.002), ("counts", 0.02)])
def test_every_group_against_the_rest(driver, folder, request, kind, lfsr):
    adata = request.getfixturevalue(kind)
    opened(driver, adata, folder / f"{kind}.html")
    for group in adata.obs[TYPE].cat.categories:
        driver.execute_script(GROUP, TYPE, group)
        cells = driver.execute_script(SELECTED, "A")
        np.testing.assert_array_equal(np.sort(cells), np.flatnonzero(adata.obs[TYPE] == group))
        lfm.tl.rank_genes(adata, TYPE, groups=[group])
        compare(driver, adata, lfsr)


@pytest.mark.parametrize(("kind", "lfsr"), [("normal", 0.002), ("counts", 0.02)])
def test_a_lasso_against_the_rest(driver, folder, request, kind, lfsr):
    adata = request.getfixturevalue(kind)
    opened(driver, adata, folder / f"{kind}.html")
    for group, radius in (("CD19+ B", 1.0), ("CD56+ NK", 2.0)):
        lasso = circle(adata, group, radius)
        answer = driver.execute_script("return app.lasso(arguments[0])", lasso)
        inside = np.zeros(adata.n_obs, dtype=bool)
        inside[driver.execute_script(SELECTED, "A")] = True
        assert answer["cells"] == inside.sum() > 1
        distance = np.hypot(*(adata.obsm["X_lfm"][:, :2] - np.mean(lasso, axis=0)).T)
        # a polygon of 39 corners lies between two circles, and positions are rounded
        assert inside[distance < 0.99 * radius].all()
        assert not inside[distance > 1.01 * radius].any()
        lfm.tl.rank_genes(adata, mask_obs=inside)
        compare(driver, adata, lfsr)


def test_one_group_against_another(page, normal):
    page.execute_script(GROUP, TYPE, "CD19+ B")
    page.execute_script("app.setSlot('B')")
    page.execute_script(GROUP, TYPE, "CD56+ NK")
    lfm.tl.rank_genes(normal, TYPE, groups=["CD19+ B"], reference="CD56+ NK")
    compare(page, normal, 0.002)
    page.execute_script(
        "const box = document.getElementById('against'); box.value = 'average'; box.dispatchEvent(new Event('change'))"
    )
    lfm.tl.rank_genes(normal, TYPE, groups=["CD19+ B"], reference=None)
    compare(page, normal, 0.002)
    page.execute_script("app.select(null, '', 'A')")
    assert page.execute_script(RANKING) is None


def test_genes_in_the_order_of_scores_over_their_sds(page, normal):
    page.execute_script(GROUP, TYPE, "CD19+ B")
    page.execute_script(
        "const box = document.getElementById('rank-by'); box.value = 'score/sd'; box.dispatchEvent(new Event('change'))"
    )
    lfm.tl.rank_genes(normal, TYPE, groups=["CD19+ B"], rankby="scores/sd")
    expected = lfm.get.rank_genes_df(normal, "CD19+ B")
    found = pd.DataFrame(page.execute_script(RANKING)).set_index("name")
    assert (found["score"] / found["sd"]).is_monotonic_decreasing
    # of genes whose ratio is all but the same, rounding decides
    assert len(set(found.index[:50]) & set(expected["names"][:50])) >= 48
    assert found.index[0] == expected["names"][0]
    shown = page.execute_script(
        "return Array.from(document.querySelectorAll('#genes .name'), (name) => name.textContent)"
    )
    assert shown == found.index[: len(shown)].tolist()
    # a new selection keeps the order
    page.execute_script(GROUP, TYPE, "CD56+ NK")
    found = pd.DataFrame(page.execute_script(RANKING))
    assert (found["score"] / found["sd"]).is_monotonic_decreasing


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_high_numbers_stand_out_most(page, theme):
    """By their contrast with the ground, which grows from one end of the colours to the other."""
    prefer(page, theme)
    try:
        page.execute_script("app.showGene(0)")
        style = "getComputedStyle(document.querySelector('.ramp')).backgroundImage"
        ground = "getComputedStyle(document.body).backgroundColor"
        stops, (below,) = (
            [luminance(found) for found in re.findall(r"rgb\((\d+), (\d+), (\d+)\)", text)]
            for text in page.execute_script(f"return [{style}, {ground}]")
        )
        contrast = [(max(stop, below) + 0.05) / (min(stop, below) + 0.05) for stop in stops]
        assert len(contrast) == 9
        assert contrast == sorted(contrast)
        assert contrast[0] > 1.8
        assert contrast[-1] > 10
    finally:
        prefer(page, "light")


def luminance(rgb: tuple[str, ...]) -> float:
    """Relative luminance as defined in WCAG 2, 0 for black and 1 for white."""
    shares = np.array(rgb, dtype=float) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_nothing_in_the_toolbar_of_genes_is_cut_or_broken(page):
    page.execute_script(GROUP, TYPE, "CD19+ B")
    heights = page.execute_script(
        "return Array.from(document.querySelector('.bar-of-buttons').children, (e) => e.getBoundingClientRect().height)"
    )
    assert max(heights) < 36  # one line
    overflow = "const bar = document.querySelector('.bar-of-buttons'); return bar.scrollWidth - bar.clientWidth"
    assert page.execute_script(overflow) <= 0


def test_fold_changes(page, normal):
    """But for genes that are expected at zero in one of both, whose ratio is of rounding errors."""
    page.execute_script(GROUP, TYPE, "CD14+ Monocyte")
    lfm.tl.rank_genes(normal, TYPE, groups=["CD14+ Monocyte"])
    found = pd.DataFrame(page.execute_script(RANKING)).set_index("name")
    expected = lfm.get.rank_genes_df(normal).set_index("names").loc[found.index]
    least = "const { A } = app.sets; const rest = app.model.restOf(A.moments); return app.ranking.order.map((j) => "
    least = page.execute_script(least + "Math.min(app.model.expected(j, A.moments), app.model.expected(j, rest)))")
    well = np.array(least) > 0.05
    assert well.mean() > 0.2
    np.testing.assert_allclose(found["logfoldchange"][well], expected["logfoldchanges"][well], atol=0.02)


def test_a_lasso_by_hand(page, normal):
    """Drawn with the pointer, it selects the cells inside, and the table shows their genes."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = page.find_element("id", "plot")
    width, height = canvas.size["width"], canvas.size["height"]
    # around the left half of the cells, in shares of the plot
    split = np.median(normal.obsm["X_lfm"][:, 0])
    middle = page.execute_script("return app.plot.places[0](arguments[0])", float(split)) * height / width / 2
    first, *others = [(-0.48, -0.48), (middle, -0.48), (middle, 0.48), (-0.48, 0.48), (-0.48, -0.48)]
    hand = ActionChains(page, duration=100)
    hand.move_to_element_with_offset(canvas, int(first[0] * width), int(first[1] * height)).click_and_hold()
    for x, y in others:
        hand.move_to_element_with_offset(canvas, int(x * width), int(y * height))
    hand.release().perform()
    cells = page.execute_script(SELECTED, "A")
    inside = normal.obsm["X_lfm"][:, 0] <= split
    assert np.isin(np.arange(normal.n_obs), cells)[inside].mean() > 0.9
    assert not np.isin(np.arange(normal.n_obs), cells)[~inside].mean() > 0.1
    assert text(page, "size-A") == f"{len(cells):,} cells · lasso"
    assert text(page, "status").startswith(f"{len(cells):,} cells in A. First genes: ")
    page.find_element("id", "clear-A").click()
    assert page.execute_script(SELECTED, "A") == []


def test_a_click_on_a_cell_keeps_the_selection(page):
    from selenium.webdriver.common.action_chains import ActionChains

    page.execute_script(GROUP, TYPE, "CD19+ B")
    place = page.execute_script("app.plot.reset(); return app.plot.scatter.getScreenPosition(arguments[0])", 7)
    canvas = page.find_element("id", "plot")
    middle = canvas.size["width"] / 2, canvas.size["height"] / 2
    offsets = [round(at - centre) for at, centre in zip(place, middle, strict=True)]
    ActionChains(page, duration=50).move_to_element_with_offset(canvas, *offsets).click().perform()
    assert len(page.execute_script(SELECTED, "A")) == 120
    assert len(page.execute_script("return app.plot.scatter.get('selectedPoints')")) == 120
    assert text(page, "hovered").split(" · ")[0] in page.execute_script("return app.model.cellNames()")


def test_keys_alone_select_a_group_and_a_gene(page, normal):
    from selenium.webdriver.common.keys import Keys

    group = page.find_element("css selector", "#legend button")
    page.execute_script("arguments[0].focus()", group)
    group.send_keys(Keys.ENTER)
    label = normal.obs[TYPE].cat.categories[0]
    assert text(page, "size-A") == f"120 cells · {label}"
    assert group.get_attribute("aria-label") == f"Select {label}, 120 cells"
    search = page.find_element("id", "gene-search")
    search.send_keys("cd79a")
    assert search.get_attribute("aria-expanded") == "true"
    search.send_keys(Keys.ENTER)
    assert text(page, "gene-name") == "CD79A"
    assert page.find_element("id", "colour-by").get_property("value") == "gene"
    tab = page.find_element("id", "tab-genes")
    tab.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("id") == "tab-cells"
    assert page.find_element("id", "bars").is_displayed()
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.execute_script(SELECTED, "A") == []


def test_every_control_has_a_name(page):
    page.execute_script(GROUP, TYPE, "CD19+ B")
    page.execute_script("app.showGene(0)")
    unnamed = """
    return [...document.querySelectorAll("button, select, input, canvas, [role=tabpanel], [role=listbox], section")]
      .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length
        || one.getAttribute("aria-labelledby"))).map((one) => one.outerHTML)
    """
    assert page.execute_script(unnamed) == []
    assert page.execute_script("return document.documentElement.lang") == "en"


def test_a_gene_colours_cells_by_what_is_expected_of_it(page, normal):
    page.find_element("id", "gene-search")
    page.execute_script(GROUP, TYPE, "CD56+ NK")
    first = page.find_element("css selector", "#genes .name")
    gene = first.text
    first.click()
    assert text(page, "gene-name") == gene
    values = page.execute_script("return Array.from(app.by.values)")
    stored, j = normal.uns["lfm"], normal.var_names.get_loc(gene)
    eta = (
        stored["mu"] + normal.var["lfm_b"].iloc[j] + normal.obs["lfm_a"] + normal.obsm["X_lfm"] @ normal.varm["lfm"][j]
    )
    np.testing.assert_allclose(values, eta, atol=2e-3 * np.abs(eta).max())
    similar = [item.text.split("\n")[0] for item in page.find_elements("css selector", "#similar li")]
    assert similar == lfm.tl.similar_genes(normal, gene, n_top=12)["names"].tolist()


def test_bars_count_the_cells_of_each_group(page, normal):
    inside = normal.obsm["X_lfm"][:, 0] > np.median(normal.obsm["X_lfm"][:, 0])
    page.execute_script("app.select(Uint32Array.from(arguments[0]), 'mine')", np.flatnonzero(inside).tolist())
    page.find_element("id", "tab-cells").click()
    rows = [row.text.split("\n") for row in page.find_elements("css selector", "#bars tr")]
    found = {" ".join(row).rsplit(" ", 3)[0]: int(" ".join(row).rsplit(" ", 3)[1]) for row in rows}
    expected = normal.obs[TYPE][inside].value_counts()
    assert found == expected[expected > 0].to_dict()


def test_what_is_saved(page, normal):
    page.execute_script(GROUP, TYPE, "CD19+ B")
    lfm.tl.rank_genes(normal, TYPE, groups=["CD19+ B"])
    saved = pd.read_csv(io.StringIO(page.execute_script("return app.ranking.csv()")))
    expected = lfm.get.rank_genes_df(normal)
    assert list(saved.columns) == ["names", "scores", "sd", "lfsr", "logfoldchanges"]
    assert saved["names"].head(20).tolist() == expected["names"].head(20).tolist()
    np.testing.assert_allclose(saved["scores"], expected["scores"], atol=1e-3)
    names = pd.read_csv(io.StringIO(page.execute_script("return app.names('A')")))["names"]
    assert names.tolist() == normal.obs_names[normal.obs[TYPE] == "CD19+ B"].tolist()


def test_hostile_names_are_text(driver, folder, fit_of):
    adata = fit_of()
    adata.obs_names = [HOSTILE, *adata.obs_names[1:]]
    adata.var_names = [HOSTILE, *adata.var_names[1:]]
    adata.obs[HOSTILE] = pd.Categorical([HOSTILE] * 20 + ["other"] * 20)
    opened(driver, adata, folder / "hostile.html", color=[HOSTILE], title=HOSTILE)
    driver.execute_script(GROUP, HOSTILE, HOSTILE)
    driver.execute_script("app.showGene(0); app.hover(0)")
    assert driver.execute_script("return window.broken === undefined && document.querySelector('img') === null")
    for place in ("title", "gene-name"):
        assert text(driver, place) == HOSTILE
    assert HOSTILE in text(driver, "hovered")
    assert driver.title == " ".join(HOSTILE.split())
    assert f"20 cells · {HOSTILE}" == text(driver, "size-A")
    saved = pd.read_csv(io.StringIO(driver.execute_script("return app.ranking.csv()")))
    assert set(saved["names"]) == set(adata.var_names)
    assert pd.read_csv(io.StringIO(driver.execute_script("return app.names('A')")))["names"][0] == HOSTILE


def test_the_network_is_asked_for_nothing(driver, normal, folder):
    opened(driver, normal, folder / "normal.html")
    driver.execute_script(GROUP, TYPE, "CD19+ B")
    driver.execute_script("app.showGene(3); document.getElementById('theme').click()")
    asked = [address for address in requests(driver) if not address.startswith(("data:", "blob:"))]
    assert asked == [(folder / "normal.html").as_uri()]
    # nor could it be
    refused = driver.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org').then(() => done('sent'), () => done('refused'))"
    )
    assert refused == "refused"
    assert requests(driver) == []
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("example.org" in message for message in complaints)


def test_both_themes(page):
    """As the system is set, until the reader switches."""
    ground = "return getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 28)"
    for system, expected in (("light", light), ("dark", dark), ("light", light)):
        prefer(page, system)
        assert page.execute_script(ground) == expected
    page.find_element("id", "theme").click()
    assert page.execute_script(ground) == dark
    prefer(page, "dark")
    page.find_element("id", "theme").click()
    assert page.execute_script(ground) == light
    assert text(page, "theme") == "Dark theme"
    prefer(page, "light")


def test_a_page_without_columns(driver, folder):
    adata = lfm.datasets.simulate(30, 20, 2)
    lfm.tl.fit(adata, 2, progress=False)
    opened(driver, adata, folder / "bare.html", color=None, columns=[])
    assert driver.execute_script("return app.lasso([[-99, -99], [99, -99], [99, 99], [-99, 99]]).cells") == 30
    assert "A holds every cell" in text(driver, "genes-empty")


def test_without_webgl_groups_can_be_selected(normal, folder, tmp_path):
    with browser(tmp_path, more=("--disable-3d-apis",)) as driver:
        opened(driver, normal, folder / "normal.html")
        assert text(driver, "plot-note").startswith("Cells cannot be drawn: this browser has no WebGL")
        driver.execute_script(GROUP, TYPE, "CD19+ B")
        driver.execute_script("app.showGene(3)")
        lfm.tl.rank_genes(normal, TYPE, groups=["CD19+ B"])
        compare(driver, normal, 0.002)


@pytest.mark.skipif(sys.platform == "win32", reason="a folder of downloads is set otherwise")
def test_a_file_is_saved(page, tmp_path):
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.execute_script(GROUP, TYPE, "CD19+ B")
    page.find_element("id", "export-genes").click()
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20).until(lambda _: (tmp_path / "genes.csv").exists())
    assert (tmp_path / "genes.csv").read_text().startswith("names,scores,sd,lfsr,logfoldchanges\n")
