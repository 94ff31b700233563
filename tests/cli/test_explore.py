"""`scvi-lfm explore`: from a file with a fit to a page."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from explorer_page import read_page
from scvi_lfm._cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command on the files of the folder; what it says."""

    def call(command: str, status: int = 0) -> str:
        command = command.replace("{folder}", str(folder)).replace("{tmp}", str(tmp_path))
        assert main(["explore", *shlex.split(command)]) == status
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return call


@pytest.mark.parametrize("name", ["fitted.h5ad", "fitted_counts.h5ad"])
def test_without_a_umap_cells_lie_by_their_first_factors(run, folder, tmp_path, name):
    said = run(f"{{folder}}/{name} {{tmp}}/page.html")
    assert said.startswith(f"scvi-lfm: wrote {tmp_path}/page.html (120 cells, 60 genes, 0.3 MB)")
    page, adata = read_page(tmp_path / "page.html"), ad.read_h5ad(folder / name)
    assert page.header["basis"] == "X_lfm"
    assert page.header["title"] == name.removesuffix(".h5ad")
    assert page.header["axes"][1]["high"] == pytest.approx(adata.obsm["X_lfm"][:, 1].max())


def test_a_umap_is_taken_and_other_planes_if_asked(run, folder, tmp_path):
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(120, 2))
    adata.write_h5ad(tmp_path / "umap.h5ad")
    run("{tmp}/umap.h5ad {tmp}/page.html --color chosen gene_7 --columns group --title 'My cells'")
    page = read_page(tmp_path / "page.html")
    assert page.header["basis"] == "X_umap"
    assert [column["name"] for column in page.header["columns"]] == ["chosen", "group"]
    assert page.header["title"] == "My cells"
    run("{tmp}/umap.h5ad {tmp}/page.html --basis X_lfm --dimensions 2 0")
    assert read_page(tmp_path / "page.html").header["axes"][0]["high"] == pytest.approx(adata.obsm["X_lfm"][:, 2].max())


MISTAKES = {
    "no fit": ("{folder}/data.h5ad {tmp}/page.html", "holds no fit 'lfm'. Make one: scvi-lfm fit"),
    "no basis": ("{folder}/fitted.h5ad {tmp}/page.html --basis X_tsne", "obsm has no 'X_tsne'"),
    "suffix": ("{folder}/fitted.h5ad {tmp}/page.pdf", "must end in .html"),
    "folder": ("{folder}/fitted.h5ad {tmp}/no/page.html", "there is no folder"),
    "colour": (
        "{folder}/fitted.h5ad {tmp}/page.html --color grp",
        "'grp' is neither a column of obs",
    ),
    "an input": ("{folder}/fitted.h5ad {folder}/fitted.h5ad", "must end in .html"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(run, tmp_path, name):
    command, message = MISTAKES[name]
    said = run(command, status=2)
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_replaced_only_on_request(run, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    # the page is looked at before the data
    said = run("{folder}/nowhere.h5ad {tmp}/page.html", status=2)
    assert "is no page of" in said
    assert "or pass --force to replace it" in said
    assert (tmp_path / "page.html").read_text() == "mine"
    run("{folder}/fitted.h5ad {tmp}/page.html --force")
    run("{folder}/fitted.h5ad {tmp}/page.html")
