from __future__ import annotations

import socket
from importlib.resources import files

import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm

TYPES = {
    "CD14+ Monocyte",
    "CD19+ B",
    "CD34+",
    "CD4+ T Helper2",
    "CD4+/CD25 T Reg",
    "CD4+/CD45RA+/CD25- Naive T",
    "CD4+/CD45RO+ Memory",
    "CD56+ NK",
    "CD8+ Cytotoxic T",
    "CD8+/CD45RA+ Naive Cytotoxic",
}
MARKERS = {"CD19+ B": "CD79A", "CD14+ Monocyte": "LYZ", "CD56+ NK": "GNLY", "CD34+": "CD34"}
FOLDER = files("scvi_lfm.datasets")


@pytest.fixture(scope="module")
def pbmc():
    return lfm.datasets.pbmc_sorted()


def test_every_sorted_type_is_there_in_equal_numbers(pbmc):
    counts = pbmc.obs["facs_celltype"].value_counts()
    assert set(counts.index) == TYPES
    assert set(counts) == {120}


def test_types_and_classes_agree(pbmc):
    pairs = pbmc.obs.groupby("facs_celltype", observed=True)["facs_subpop"].nunique()
    assert set(pairs) == {1}
    assert pbmc.obs["facs_subpop"].nunique() == 5


def test_holds_raw_counts_in_a_sparse_matrix(pbmc):
    assert isinstance(pbmc.X, sp.csr_matrix)
    assert pbmc.X.dtype == np.float32
    assert pbmc.X.has_canonical_format
    assert pbmc.X.data.min() >= 1
    np.testing.assert_array_equal(pbmc.X.data, np.round(pbmc.X.data))


def test_every_gene_is_detected_in_three_cells_and_no_cell_is_empty(pbmc):
    assert pbmc.X.getnnz(axis=0).min() >= 3
    assert pbmc.X.getnnz(axis=1).min() > 100


def test_names_are_unique_and_genes_are_symbols_with_identifiers(pbmc):
    assert pbmc.obs_names.is_unique
    assert pbmc.var_names.is_unique
    assert pbmc.var["ensembl_id"].is_unique
    assert pbmc.var.loc["CD19", "ensembl_id"] == "ENSG00000177455"


@pytest.mark.parametrize(("name", "gene"), MARKERS.items())
def test_a_type_expresses_its_marker_most(pbmc, name, gene):
    cells = pbmc.obs["facs_celltype"] == name
    values = pbmc[:, gene].X.toarray().ravel() / np.asarray(pbmc.X.sum(axis=1)).ravel()
    others = pbmc.obs["facs_celltype"][~cells]
    strongest = max(values[~cells][others == other].mean() for other in others.unique())
    assert values[cells].mean() > 2 * strongest


def test_each_call_gives_a_new_object(pbmc):
    again = lfm.datasets.pbmc_sorted()
    again.X.data[:] = 0
    again.obs["facs_celltype"] = "none"
    third = lfm.datasets.pbmc_sorted()
    assert (third.X != pbmc.X).nnz == 0
    assert third.obs.equals(pbmc.obs)


def test_needs_no_network(pbmc, monkeypatch):
    def refuse(*_args, **_kwargs):
        msg = "no network here"
        raise OSError(msg)

    monkeypatch.setattr(socket, "socket", refuse)
    assert lfm.datasets.pbmc_sorted().shape == pbmc.shape


def test_file_is_small_and_its_source_and_licence_lie_beside_it(pbmc):
    assert (FOLDER / "pbmc_sorted.h5ad").stat().st_size <= 3_000_000
    text = (FOLDER / "pbmc_sorted.md").read_text()
    for part in ("10.1038/ncomms14049", "fastTopics", "BSD 2-Clause", "confounded", "Copyright (c)"):
        assert part in text
    assert f"{pbmc.n_vars:,} genes" in text
    assert pbmc.uns["source"]["license"] == "BSD-2-Clause"
