"""An earlier output is replaced; what holds something else only when that is asked for."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from scvi_lfm._cli import main
from scvi_lfm._cli._messages import CommandError
from scvi_lfm._cli._replaceable import check_replaceable, check_replaceable_table

if TYPE_CHECKING:
    from pathlib import Path

WORDS = "name another file, or pass --force to replace it"


def write(adata: ad.AnnData, path: Path) -> None:
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_an_earlier_output_is_replaced_and_one_with_more_in_it_is_not(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    data, out = folder / f"data.{suffix}", tmp_path / f"out.{suffix}"
    check_replaceable(out, data)
    fitted = ad.read_h5ad(folder / "fitted.h5ad")
    write(fitted, out)
    check_replaceable(out, data)
    fitted.obsm["X_umap"] = np.zeros((fitted.n_obs, 2))
    fitted.raw = fitted
    write(fitted, out)
    with pytest.raises(CommandError, match=rf"out.{suffix} holds obsm\['X_umap'\] and 1 more, which .*data.*{WORDS}"):
        check_replaceable(out, data)
    check_replaceable(out, out)


def test_what_is_no_output_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    data, out, table = folder / "data.h5ad", tmp_path / "out.h5ad", tmp_path / "genes.csv"
    shutil.copy(data, out)
    with pytest.raises(CommandError, match=f"out.h5ad holds no result of this package, and would be replaced: {WORDS}"):
        check_replaceable(out, data)
    out.write_text("notes")
    with pytest.raises(CommandError, match=f"out.h5ad cannot be read as h5ad, .*: {WORDS}"):
        check_replaceable(out, data)
    out.write_text("")
    check_replaceable(out, data)
    for text, stays in (("", False), ("group,names,scores,sd,lfsr\n", False), ("cell,genes\n", True)):
        table.write_text(text)
        if stays:
            with pytest.raises(CommandError, match=f"genes.csv holds no table of this package, .*: {WORDS}"):
                check_replaceable_table(table)
        else:
            check_replaceable_table(table)


@pytest.mark.slow
def test_force_replaces_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "out.h5ad", tmp_path / "genes.csv"
    for words, path in (
        (["fit", folder / "data.h5ad", out, "--n-factors", "2"], out),
        (["rank", folder / "fitted.h5ad", "--mask", "chosen", "--csv", table], table),
    ):
        shutil.copy(folder / "data.h5ad", path)
        before = path.read_bytes()
        assert main(list(map(str, words))) == 2
        assert capsys.readouterr().err.strip().endswith(WORDS)
        assert path.read_bytes() == before
        assert main([*map(str, words), "--force"]) == 0
        assert path.read_bytes() != before
        assert main(list(map(str, words))) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.csv", "out.h5ad"]
