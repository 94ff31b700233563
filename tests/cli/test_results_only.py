"""Results without their data, and back in them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from command_line import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grouped counts, a fit of them, and its results alone."""
    made = tmp_path_factory.mktemp("results")
    data = ad.read_h5ad(folder / "counts.h5ad")
    data.obs["group"] = pd.Categorical(np.repeat(["one", "two", "three"], 40))
    data.layers["twice"] = 2 * data.X
    data.write_h5ad(made / "data.h5ad")
    data.write_zarr(made / "data.zarr")
    assert run("fit", made / "data.h5ad", made / "fitted.h5ad", "--n-factors", 2) == 0
    assert run("fit", made / "data.h5ad", made / "results.h5ad", "--n-factors", 2, "--results-only") == 0
    return made


def assert_same(one: ad.AnnData, other: ad.AnnData) -> None:
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    for container in ("obsm", "varm"):
        assert set(getattr(one, container)) == set(getattr(other, container))
        for name, values in getattr(one, container).items():
            np.testing.assert_array_equal(values, getattr(other, container)[name])
    assert set(one.uns) == set(other.uns)
    assert one.uns["lfm_written"] == other.uns["lfm_written"]
    for name in set(one.uns["lfm"]) - {"seconds"}:
        np.testing.assert_equal(one.uns["lfm"][name], other.uns["lfm"][name])
    assert (one.X != other.X).nnz == 0


def test_results_have_no_values_and_serve_all_that_needs_none(made: Path) -> None:
    results, fitted = ad.read_h5ad(made / "results.h5ad"), ad.read_h5ad(made / "fitted.h5ad")
    assert results.X is None
    assert not results.layers
    with h5py.File(made / "results.h5ad") as file:
        assert "X" not in file or file["X"].attrs["encoding-type"] == "null"  # as anndata 0.12.0 writes None
    np.testing.assert_array_equal(results.obsm["X_lfm"], fitted.obsm["X_lfm"])
    for adata in (results, fitted):
        lfm.tl.rank_genes(adata, "group")
        lfm.tl.rank_cells(adata, "gene_7")
    tables = [lfm.get.rank_genes_df(adata) for adata in (results, fitted)]
    pd.testing.assert_frame_equal(*tables)
    np.testing.assert_array_equal(results.obs["rank_cells_lfm"], fitted.obs["rank_cells_lfm"])
    pd.testing.assert_frame_equal(lfm.get.variance_df(results), lfm.get.variance_df(fitted))


def test_figures_of_results(made: Path) -> None:
    results = ad.read_h5ad(made / "results.h5ad")
    lfm.tl.rank_genes(results, "group")
    lfm.pl.rank_genes(results, show=False)
    lfm.pl.elbo(results, show=False)


def test_rank_and_anomalies_of_results(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, table in (("results", "one"), ("fitted", "other")):
        assert run("rank", made / f"{data}.h5ad", "--groupby", "group", "--csv", tmp_path / f"{table}.csv") == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "other.csv").read_text()
    assert run("anomalies", made / "results.h5ad") == 2
    assert "has neither X nor layers. If it holds results alone: scvi-lfm merge DATA" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data.h5ad", "data.zarr"])
def test_merged_results_are_what_fit_writes(made: Path, tmp_path: Path, name: str) -> None:
    data, out = tmp_path / name, tmp_path / f"merged{name[4:]}"
    if name.endswith("zarr"):
        shutil.copytree(made / name, data)
        assert run("merge", data, made / "results.h5ad", "--in-place") == 0
        merged = ad.read_zarr(data)
    else:
        assert run("merge", made / name, made / "results.h5ad", out) == 0
        merged = ad.read_h5ad(out)
    assert_same(merged, ad.read_h5ad(made / "fitted.h5ad"))


def test_names_in_another_order(made: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(120), rng.permutation(60)
    ad.read_h5ad(made / "data.h5ad")[cells, genes].copy().write_h5ad(tmp_path / "shuffled.h5ad")
    assert run("merge", tmp_path / "shuffled.h5ad", made / "results.h5ad", tmp_path / "merged.h5ad") == 0
    expected = ad.read_h5ad(made / "fitted.h5ad")[cells, genes].copy()
    assert_same(ad.read_h5ad(tmp_path / "merged.h5ad"), expected)


@pytest.mark.slow
def test_names_that_differ(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = ad.read_h5ad(made / "data.h5ad"), tmp_path / "out.h5ad"
    for cut, of in ((data[:, 3:], "gene 'gene_0'"), (data[1:], "cell 'cell_0'")):
        path = tmp_path / "fewer.h5ad"
        cut.copy().write_h5ad(path)
        assert run("merge", path, made / "results.h5ad", out) == 2
        expected = f"{path} has no {of}, which {made / 'results.h5ad'} has"
        assert expected in capsys.readouterr().err
    data.obs_names = ["other", *data.obs_names[1:]]
    data.write_h5ad(path)
    assert run("merge", path, made / "results.h5ad", out) == 2
    assert f"results.h5ad has no cell 'other', which {path} has" in capsys.readouterr().err
    names = data.obs_names.to_numpy().copy()
    names[1] = names[2]
    data.obs_names = names
    with pytest.warns(UserWarning, match="not unique"):
        data.copy().write_h5ad(path)
    assert run("merge", path, made / "results.h5ad", out) == 2
    assert f"{path} names two cells 'cell_2'" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_but_results_is_replaced(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, path, out = ad.read_h5ad(made / "data.h5ad"), tmp_path / "own.h5ad", tmp_path / "out.h5ad"
    results = ad.read_h5ad(made / "results.h5ad")
    for notes in ("of another kind", {"nowhere": {"lfm": "fit"}, "obs": "of another kind"}):
        results.uns["lfm_written"] = notes
        results.write_h5ad(path)
        assert run("merge", made / "data.h5ad", path, out) == 2
        assert f"{path} holds no results" in capsys.readouterr().err
    data.obs["lfm_a"] = 1.0
    data.write_h5ad(path)
    assert run("merge", path, made / "results.h5ad", out) == 2
    assert f"obs['lfm_a'] of {path} is no result of a tool of this package" in capsys.readouterr().err
    # an earlier fit goes as a whole, with the fields that the later one has not
    assert run("fit", made / "data.h5ad", path, "--n-factors", 1, "--likelihood", "normal", "--force") == 0
    assert "lfm_sigma" in ad.read_h5ad(path).var
    assert run("merge", path, made / "results.h5ad", out) == 0
    assert_same(ad.read_h5ad(out), ad.read_h5ad(made / "fitted.h5ad"))


def test_results_serve_as_a_reference(made: Path, tmp_path: Path) -> None:
    for reference in ("results", "fitted"):
        command = ("project", made / "data.h5ad", made / f"{reference}.h5ad", tmp_path / f"{reference}.h5ad")
        assert run(*command, "--key-added", "placed") == 0
    one, other = (ad.read_h5ad(tmp_path / f"{reference}.h5ad") for reference in ("results", "fitted"))
    np.testing.assert_array_equal(one.obsm["X_placed"], other.obsm["X_placed"])
