"""`scvi-lfm demo`: what it says is what it wrote."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from scvi_lfm._cli import main

if TYPE_CHECKING:
    from pathlib import Path


def few_cells() -> ad.AnnData:
    """A sixth of the shipped cells, and their 200 most frequent genes."""
    adata = lfm.datasets.pbmc_sorted()[::6]
    totals = pd.Series(np.asarray(adata.X.sum(0)).ravel(), adata.var_names)
    return adata[:, totals.nlargest(200).index].copy()


def all_cells() -> ad.AnnData:
    return lfm.datasets.pbmc_sorted()


ALL_CELLS = pytest.param(all_cells, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[few_cells, ALL_CELLS])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo printed, and the folder it wrote."""
    out, shown = tmp_path_factory.mktemp("demo") / "results", request.param()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(lfm.datasets, "pbmc_sorted", lambda: shown)
        status = main(["demo", "--out", str(out)])
    assert status == 0
    return printed.getvalue(), out


@pytest.mark.slow
def test_demo_tells_and_writes_the_main_job(demo: tuple[str, Path]) -> None:
    printed, out = demo
    adata = ad.read_h5ad(out / "pbmc_sorted.h5ad")
    assert adata.uns["lfm"]["params"]["likelihood"] == "negative_binomial"
    assert not adata.layers
    for group in adata.obs["facs_celltype"].cat.categories:
        best = " ".join(lfm.get.rank_genes_df(adata, group)["names"].head(3))
        assert re.search(rf"^  {re.escape(group)} +{re.escape(best)} ", printed, re.MULTILINE)
    for entry in lfm.get.anomalies_df(adata).head(5).itertuples():
        assert re.search(rf"^{entry.cell} +{re.escape(entry.gene)} .* {entry.y:.0f} ", printed, re.MULTILINE)
    assert f"correlate {adata.uns['lfm_anomaly']['depth_correlation']:+.2f} with" in printed
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {"overview.png", "rank_genes.png", "loadings.png", "variance.png", "elbo.png"}
    assert figures | {"pbmc_sorted.h5ad", "explorer.html"} == {path.name for path in out.iterdir()}
    told = re.findall(rf"^  ({re.escape(str(out))}/\S+)\n      ([A-Z].+\.)$", printed, re.MULTILINE)
    assert {path for path, _ in told} == {str(path) for path in out.iterdir()}


@pytest.mark.parametrize("demo", [ALL_CELLS], indirect=True)
def test_demo_knows_its_data(demo: tuple[str, Path]) -> None:
    adata = ad.read_h5ad(demo[1] / "pbmc_sorted.h5ad")
    for group, gene in (("CD19+ B", "CD79A"), ("CD56+ NK", "GNLY"), ("CD14+ Monocyte", "S100A8")):
        assert gene in lfm.get.rank_genes_df(adata, group)["names"].head(10).to_numpy()


@pytest.mark.slow
def test_demo_prints_a_next_step_that_works(demo: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    step = re.search(r"^  scvi-lfm (rank .+)$", demo[0], re.MULTILINE)
    assert step is not None
    assert main(shlex.split(step[1])) == 0
    assert "GNLY" in capsys.readouterr().out
