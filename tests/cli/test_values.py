"""What the command line says about values that are not what a likelihood, or a fit, is made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scanpy as sc

import scvi_lfm as lfm
from command_line import run

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad


@pytest.fixture(scope="module")
def unlogged() -> ad.AnnData:
    """Real counts of 200 cells in the 400 genes with most of them, normalised and not logged."""
    adata = lfm.datasets.pbmc_sorted()[::6].copy()
    adata.X = adata.X.astype(np.float32)
    adata = adata[:, np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:400]].copy()
    adata.obs["chosen"] = np.arange(200) < 100
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    return adata


def warnings_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("scvi-lfm: warning: X holds")]


def test_unlogged_values(unlogged: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.h5ad", tmp_path / "out.h5ad"
    unlogged.write_h5ad(data)
    assert run("fit", data, out, "--n-factors", 1) == 0
    (line,) = warnings_of(capsys.readouterr().err)
    assert f"the largest is {unlogged.X.max():,.4g}" in line
    assert line.endswith(
        " Pass --normalize if these are no logs, or --layer NAME for a layer of log values or whole counts."
    )
    assert run("rank", out, "--mask", "chosen") == 0
    said = capsys.readouterr()
    assert "scvi-lfm: log2 fold changes are NaN: the fit read values that are not log1p" in said.err
    assert "nan" in said.out.lower()
    # and what it names mends it
    for options in (["--normalize"], ["--layer", "counts"]):
        assert run("fit", data, out, "--n-factors", 0, *options) == 0
        assert "look unlogged" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:zero-centering a sparse")
def test_scaled_values(unlogged: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = unlogged.copy()
    sc.pp.log1p(adata)
    sc.pp.scale(adata)
    adata.write_h5ad(tmp_path / "data.h5ad")
    assert run("fit", tmp_path / "data.h5ad", tmp_path / "out.h5ad", "--n-factors", 0) == 0
    (line,) = warnings_of(capsys.readouterr().err)
    assert "scaled to unit variance" in line
    assert line.endswith(" Pass --layer NAME for a layer of log-normalised values from before they were scaled.")


def test_values_of_another_kind_than_the_fit(
    unlogged: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata, data, out = unlogged.copy(), tmp_path / "data.h5ad", tmp_path / "out.h5ad"
    sc.pp.log1p(adata)
    lfm.tl.fit(adata, 1, progress=False)
    adata.layers["logs"], adata.X = adata.X, adata.layers["counts"]
    adata.write_h5ad(data)
    for command in (["anomalies", data, "--out", out], ["project", data, data, out, "--key-added", "new"]):
        assert run(*command) == 2
        assert "X holds whole numbers" in (said := capsys.readouterr().err)
        assert "layers['logs'] matches" in said
        assert not out.exists()
    assert run("anomalies", data, "--layer", "logs", "--n-top", 0) == 0
