"""Every command does what the call it stands for does."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from command_line import run
from scvi_lfm._cli import _commands as commands
from scvi_lfm._cli import _files as files
from scvi_lfm._cli import _parser as parser
from scvi_lfm._cli import main

if TYPE_CHECKING:
    from pathlib import Path


def assert_same_fit(one: ad.AnnData, other: ad.AnnData, key: str = "lfm") -> None:
    np.testing.assert_array_equal(one.obsm[f"X_{key}"], other.obsm[f"X_{key}"])
    np.testing.assert_array_equal(one.varm[f"{key}_sd"], other.varm[f"{key}_sd"])
    np.testing.assert_array_equal(one.uns[key]["prior_gene_cov"], other.uns[key]["prior_gene_cov"])


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], *([name, "--help"] for name in commands.COMMANDS)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"scvi-lfm {lfm.__version__}\n")
    for name in commands.COMMANDS:
        assert f"  scvi-lfm {name}" in printed, f"no example of {name}"


def test_help_and_completion_do_not_wait_for_libraries() -> None:
    """Shells ask for completion whenever they start."""
    code = (
        "import sys\nfrom scvi_lfm._cli import main\n"
        "for line in (['--help'], ['--completion', 'bash']):\n"
        "    try:\n        main(line)\n    except SystemExit:\n        pass\n"
        "sys.exit(' '.join({'torch', 'pyro', 'anndata', 'scanpy', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "usage: scvi-lfm" in done.stdout
    assert "_shtab_scvi_lfm" in done.stdout


def test_choices_are_those_of_the_package() -> None:
    anomalies, rank_genes = (import_module(f"scvi_lfm.tl.{name}") for name in ("_anomalies", "_rank_genes"))
    assert parser.DIRECTIONS == anomalies.DIRECTIONS
    assert parser.LISTED_BY == anomalies.LISTED_BY
    assert parser.RANKBY == rank_genes.RANKBY


def test_defaults_are_those_of_the_package() -> None:
    for function, line in (
        (lfm.tl.fit, "fit in out"),
        (lfm.tl.rank_genes, "rank in --mask m"),
        (lfm.tl.anomalies, "anomalies in"),
        (lfm.tl.project, "project in ref out"),
    ):
        defaults = {name: value.default for name, value in inspect.signature(function).parameters.items()}
        options = vars(parser.build_parser().parse_args(line.split()))
        shared = options.keys() & defaults.keys() - {"reference"}
        assert len(shared) >= 4
        assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}


@pytest.mark.parametrize(
    ("source", "target"), [("data.h5ad", "out.zarr"), pytest.param("data.zarr", "out.h5ad", marks=pytest.mark.slow)]
)
def test_fit(folder: Path, tmp_path: Path, source: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--n-factors", 3, "--noise", "gene", "--family", "mean_field", "--seed", 7, "--key", "mine"]
    options += ["--covariates", "group"]
    assert run("fit", folder / source, tmp_path / target, *options) == 0
    expected = ad.read_h5ad(folder / "data.h5ad")
    chosen = {"noise": "gene", "family": "mean_field", "covariates": ["group"]}
    lfm.tl.fit(expected, 3, **chosen, rng=7, key_added="mine", progress=False)
    assert_same_fit(files.read_data(tmp_path / target), expected, "mine")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fitted 120 cells x 60 genes with 3 factors" in captured.err
    assert captured.err.endswith(f"scvi-lfm: wrote {tmp_path / target}\n")
    assert [path.name for path in tmp_path.iterdir()] == [target]


def test_fit_chooses_the_number_of_factors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "data.h5ad", tmp_path / "out.h5ad", "--n-factors", "auto") == 0
    fitted = ad.read_h5ad(tmp_path / "out.h5ad")
    n_factors = fitted.uns["lfm"]["params"]["n_factors"]
    assert fitted.obsm["X_lfm"].shape == (120, n_factors)
    assert f"with {n_factors} factors" in capsys.readouterr().err


def test_fit_normalizes_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", "--n-factors", 4, "--normalize") == 0
    assert "whole numbers" not in capsys.readouterr().err
    counts, fitted = ad.read_h5ad(folder / "counts.h5ad"), ad.read_h5ad(tmp_path / "out.h5ad")
    assert (fitted.X != counts.X).nnz == 0
    assert set(fitted.layers) == set(counts.layers)
    params = fitted.uns["lfm"]["params"]
    assert (params["normalize"], params["likelihood"]) == (1e4, "normal")
    lfm.tl.fit(counts, 4, normalize=1e4, progress=False)
    assert_same_fit(fitted, counts)


def test_normalize_takes_a_total_or_none(folder: Path, tmp_path: Path) -> None:
    """In front of the files too, which are none."""
    counts, out = folder / "counts.h5ad", tmp_path / "out.h5ad"
    for before, after, total in (
        (["--normalize"], [], 1e4),
        (["--normalize", 500], [], 500),
        ([], ["--normalize=2e3"], 2e3),
        ([], ["--normalize", "--noise", "gene"], 1e4),
    ):
        assert run("fit", *before, counts, out, "--force", "--n-factors", 0, *after) == 0
        assert ad.read_h5ad(out).uns["lfm"]["params"]["normalize"] == total


def test_fit_takes_counts_as_they_are(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", "--n-factors", 3) == 0
    fitted, expected = ad.read_h5ad(tmp_path / "out.h5ad"), ad.read_h5ad(folder / "counts.h5ad")
    assert fitted.uns["lfm"]["params"]["likelihood"] == "negative_binomial"
    assert "lognorm" not in fitted.layers
    lfm.tl.fit(expected, 3, progress=False)
    np.testing.assert_array_equal(fitted.obsm["X_lfm"], expected.obsm["X_lfm"])
    np.testing.assert_array_equal(fitted.obsm["lfm_cov"], expected.obsm["lfm_cov"])
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"scvi-lfm: fitted 120 cells x 60 genes with 3 factors \(likelihood negative_binomial\) in .* s; "
        r"\d of them are on",
        lines[1],
    )
    assert len(lines) == 3


def test_fit_takes_likelihood_and_size_factors(folder: Path, tmp_path: Path) -> None:
    options = ["--n-factors", 3, "--likelihood", "poisson", "--size-factors", "depth", "--tol", 0.2]
    assert run("fit", folder / "counts.h5ad", tmp_path / "out.h5ad", *options) == 0
    expected = ad.read_h5ad(folder / "counts.h5ad")
    lfm.tl.fit(expected, 3, likelihood="poisson", size_factors="depth", tol=0.2, progress=False)
    assert_same_fit(ad.read_h5ad(tmp_path / "out.h5ad"), expected)


def test_normal_fit_of_counts_says_what_to_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, out = folder / "counts.h5ad", tmp_path / "out.h5ad"
    assert run("fit", counts, out, "--n-factors", 2, "--likelihood", "normal") == 0
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in lines if "warning" in line]
    assert re.match("scvi-lfm: warning: X holds whole numbers", warning)
    assert warning.endswith(" Leave --likelihood out to fit counts as such, or pass --normalize.")
    assert all(line.startswith("scvi-lfm: ") for line in lines)
    assert not any(".py" in line for line in lines)


def test_rank_and_anomalies_of_a_fit_to_counts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, table = folder / "fitted_counts.h5ad", tmp_path / "table.csv"
    assert run("rank", data, "--mask", "chosen", "--csv", table) == 0
    adata = ad.read_h5ad(data)
    lfm.tl.rank_genes(adata, mask_obs="chosen")
    assert table.read_text() == lfm.get.rank_genes_df(adata).to_csv(index=False)
    capsys.readouterr()
    assert run("anomalies", data, "--direction", "up", "--by", "auto", "--fdr", 0.2, "--csv", table) == 0
    lfm.tl.anomalies(adata, direction="up", fdr=0.2)
    entries = lfm.get.anomalies_df(adata)
    assert table.read_text() == entries.to_csv(index=False)
    captured = capsys.readouterr()
    assert f"correlate {adata.uns['lfm_anomaly']['depth_correlation']:+.2f} with the number of genes" in captured.err
    top = captured.out.splitlines()[1].split()
    assert top[:3] == ["cell_5", "gene_7", f"{entries['y'][0]:.0f}"]
    assert top[3] == f"{entries['expected'][0]:.3f}"


def test_rank(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "genes.csv", tmp_path / "ranked.h5ad"
    options = ["--groups", "one", "two", "--reference", "three", "--rankby", "scores/sd"]
    options += ["--n-top", 2, "--csv", table, "--out", out]
    assert run("rank", folder / "fitted.h5ad", "--groupby", "group", *options) == 0
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    lfm.tl.rank_genes(adata, "group", groups=["one", "two"], reference="three", rankby="scores/sd")
    expected = lfm.get.rank_genes_df(adata)
    assert table.read_text() == expected.to_csv(index=False)
    pd.testing.assert_frame_equal(lfm.get.rank_genes_df(ad.read_h5ad(out)), expected)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:]] == expected.groupby("group", observed=True).head(2)[
        ["group", "names"]
    ].to_numpy().tolist()


def test_rank_for_a_mask_against_the_average(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "genes.csv"
    assert run("rank", folder / "fitted.h5ad", "--mask", "chosen", "--reference", "average", "--csv", table) == 0
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    lfm.tl.rank_genes(adata, mask_obs="chosen", reference=None)
    assert table.read_text() == lfm.get.rank_genes_df(adata).to_csv(index=False)


def test_anomalies(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "entries.csv", tmp_path / "scored.zarr"
    options = ["--direction", "up", "--fdr", 0.05, "--n-top", 1, "--csv", table, "--out", out]
    assert run("anomalies", folder / "fitted.h5ad", *options) == 0
    adata = ad.read_h5ad(folder / "fitted.h5ad")
    lfm.tl.anomalies(adata, direction="up", fdr=0.05)
    assert table.read_text() == lfm.get.anomalies_df(adata).to_csv(index=False)
    np.testing.assert_array_equal(files.read_data(out).obs["lfm_anomaly"], adata.obs["lfm_anomaly"])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:2] == ["cell_5", "gene_7"]
    assert len(captured.out.splitlines()) == 2
    # every gene is detected in every cell
    assert np.isnan(adata.uns["lfm_anomaly"]["depth_correlation"])
    assert "correlate" not in captured.err


def test_numbers_of_batches_warn(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = ad.read_h5ad(folder / "data.h5ad")
    adata.obs["batch"] = np.arange(adata.n_obs) % 3
    adata.write_h5ad(tmp_path / "batches.h5ad")
    assert run("fit", tmp_path / "batches.h5ad", tmp_path / "out.h5ad", "--n-factors", 2, "--covariates", "batch") == 0
    assert "scvi-lfm: warning: `covariates`: obs['batch'] holds 3 whole numbers" in capsys.readouterr().err


def test_a_result_replaces_an_earlier_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.h5ad"
    assert run("anomalies", folder / "fitted.h5ad", "--out", out, "--n-top", 0) == 0
    assert run("anomalies", out, "--out", out, "--force", "--n-top", 0, "--direction", "up") == 0
    assert run("fit", out, out, "--force", "--n-factors", 2) == 0
    assert ad.read_h5ad(out).uns["lfm_anomaly"]["params"]["direction"] == "up"


def test_project(folder: Path, tmp_path: Path) -> None:
    data, fitted, out = folder / "data.h5ad", folder / "fitted.h5ad", tmp_path / "placed.h5ad"
    assert run("project", data, fitted, out, "--key-added", "placed") == 0
    adata = ad.read_h5ad(data)
    lfm.tl.project(adata, ad.read_h5ad(fitted), key_added="placed")
    assert_same_fit(ad.read_h5ad(out), adata, "placed")


@pytest.mark.slow
def test_project_normalizes_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, fitted, placed = folder / "counts.h5ad", tmp_path / "fitted.h5ad", tmp_path / "placed.h5ad"
    assert run("fit", counts, fitted, "--n-factors", 3, "--normalize") == 0
    capsys.readouterr()
    for option in ([], ["--normalize"]):
        assert run("project", counts, fitted, placed, *option) == 0
        assert "warning" not in capsys.readouterr().err
        one, other = ad.read_h5ad(fitted).obsm["X_lfm"], ad.read_h5ad(placed).obsm["X_lfm"]
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert run("anomalies", fitted, "--n-top", 0) == 0
    assert "warning" not in capsys.readouterr().err
    # not where the values were fitted as they were
    data, fitted = folder / "data.h5ad", folder / "fitted.h5ad"
    assert run("project", data, fitted, tmp_path / "new.h5ad", "--normalize") == 2
    assert "was fitted to values as they were" in capsys.readouterr().err


def test_project_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, fitted, placed = folder / "counts.h5ad", folder / "fitted_counts.h5ad", tmp_path / "placed.h5ad"
    assert run("project", counts, fitted, placed) == 0
    adata = ad.read_h5ad(counts)
    lfm.tl.project(adata, ad.read_h5ad(fitted))
    assert_same_fit(ad.read_h5ad(placed), adata)
    assert run("project", counts, fitted, placed, "--size-factors", "depth") == 0
    by_depth = ad.read_h5ad(placed)
    np.testing.assert_allclose(by_depth.obs["lfm_size_factor"], by_depth.obs["depth"], rtol=1e-6)
    capsys.readouterr()
    assert run("project", counts, fitted, placed, "--normalize") == 2
    assert "was fitted to counts, so new cells bring counts: leave --normalize out" in capsys.readouterr().err
