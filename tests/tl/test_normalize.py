"""Counts that are log-normalised as they are read: the same as those that scanpy log-normalises, in every tool."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import scvi_lfm as lfm
from readings import readings
from silent import no_warning

N, M = 150, 60
QUIET = "ignore:The fit did not converge:UserWarning"
pytestmark = pytest.mark.filterwarnings(QUIET)


def counts_of(rng=0, n=N):
    adata = lfm.datasets.simulate(n, M, 3, mu=0.5, likelihood="negative_binomial", rng=rng)
    adata.obs["type"] = np.where(adata.obsm["A"][:, 0] > 0, "one", "two")
    adata.obs["odd"] = np.where(np.arange(n) % 2, "odd", "even")
    adata.var["some"] = np.arange(M) % 3 > 0
    return adata


def logged(counts, target=1e4):
    adata = counts.copy()
    sc.pp.normalize_total(adata, target_sum=target)
    sc.pp.log1p(adata)
    return adata


def fit(adata, n_factors=3, **options):
    lfm.tl.fit(adata, n_factors, **{"progress": False} | options)
    return adata


@pytest.fixture(scope="module")
def shared():
    """A fit that normalises counts, and one of logs that scanpy made. Shared: copy before writing into it."""
    counts = counts_of()
    return fit(counts.copy(), normalize=1e4), fit(logged(counts))


@pytest.fixture
def pair(shared):
    return [adata.copy() for adata in shared]


def eta_of(adata, key):
    q = adata.uns[key]["mu"] + adata.obs[f"{key}_a"].to_numpy()[:, None] + adata.var[f"{key}_b"].to_numpy()
    return q + np.nan_to_num(adata.obsm[f"X_{key}"]) @ np.nan_to_num(adata.varm[key]).T


def same_fit(one, other, key="lfm", rtol=1e-3):
    """Equal but for the rounding of float32, which the steps of a fit carry on, and the directions of weak factors."""
    first, second = eta_of(one, key), eta_of(other, key)
    # at most 5e-5 where both take the same epochs; rounding may decide whether one more is taken: 0.013
    same_epochs = len(one.uns[key]["elbo"]["epoch"]) == len(other.uns[key]["elbo"]["epoch"])
    assert np.nanmax(np.abs(first - second)) < (rtol if same_epochs else 0.05) * np.nanstd(second)
    for name in ("mu", "sigma"):
        np.testing.assert_allclose(one.uns[key][name], other.uns[key][name], rtol=10 * rtol, atol=10 * rtol)
    assert one.uns[key]["elbo"]["value"][-1] == pytest.approx(other.uns[key]["elbo"]["value"][-1], rel=1e-4)


CASES = {
    "sparse": {},
    "total": {"normalize": 500.0},
    "some genes": {"mask_var": "some"},
    "chosen number": {"n_factors": "auto"},
    "noise of genes": {"noise": "gene"},
    "noise of cells": {"noise": "cell_gene"},
    "covariates": {"covariates": "odd"},
    "minibatches": {"batch_size": 40, "max_epochs": 5},
    "held out": {"held_out": "test"},
    "student": {"likelihood": "student_t", "engine": "pyro", "n_factors": 1, "max_epochs": 20},
}
QUICK = {"sparse", "total", "some genes", "covariates", "held out"}


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray(), lambda x: x.astype(np.uint16)])
def test_every_form_of_counts_is_normalised_as_by_scanpy(form):
    counts = counts_of()
    counts.X = form(counts.X)
    before = counts.X.copy()
    fit(counts, normalize=1e4)
    assert type(counts.X) is type(before)
    assert abs(counts.X - before).max() == 0
    same_fit(counts, fit(logged(counts_of())))


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_fit_is_that_of_values_which_scanpy_normalised(case):
    options = {"n_factors": 3, "normalize": 1e4} | CASES[case]
    counts = counts_of()
    counts.layers["test"] = sp.csr_matrix(np.random.default_rng(0).random(counts.shape) < 0.05)
    one, target = counts.copy(), options.pop("normalize")
    fit(one, normalize=target, **options)
    other = fit(logged(counts, target), **options)
    same_fit(one, other)
    params = one.uns["lfm"]["params"]
    assert params.pop("normalize") == target
    assert params.keys() == other.uns["lfm"]["params"].keys()
    assert params["likelihood"] == options.get("likelihood", "normal")
    record, expected = (adata.uns["lfm"]["values"] for adata in (one, other))
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-5)
    values = counts.X.toarray()
    assert (record["read_whole"], record["read_minimum"], record["read_maximum"]) == (1, 0, values.max())
    np.testing.assert_array_equal(one.obs["lfm_total"], values.sum(1))


def test_a_cell_without_counts_stays_so():
    counts = counts_of()
    counts.X = sp.csr_matrix(sp.diags_array((np.arange(N) != 3).astype(np.float32)) @ counts.X)
    with pytest.warns(UserWarning, match="1 cell.s. of X are all zero"):
        fit(counts, normalize=1e4)
    assert np.isfinite(counts.obsm["X_lfm"]).all()
    assert counts.obs["lfm_total"].iloc[3] == 0
    # also where the genes that are fitted are those that it has none of
    some = counts_of()
    some.X = sp.csr_matrix(some.X.toarray() * ((np.arange(N) != 3)[:, None] | ~some.var["some"].to_numpy()))
    with pytest.warns(UserWarning, match="1 cell.s. of X are all zero"):
        fit(some, normalize=1e4, mask_var="some")
    assert some.obs["lfm_total"].iloc[3] > 0


def tables(adata):
    """What every tool that reads values, or is told of them, makes of a fit."""
    lfm.tl.rank_genes(adata, "type")
    lfm.tl.anomalies(adata, by="q", fdr=0.5)
    report = lfm.tl.check(adata)
    return {
        "rank": lfm.get.rank_genes_df(adata).sort_values(["group", "names"]),
        "anomalies": lfm.get.anomalies_df(adata).sort_values(["cell", "gene"]),
        "calibration": report.calibration,
        "convergence": report.convergence[["elbo"]],
        "predict": lfm.tl.predict(adata, obs_names=["cell_0", "cell_1"], var_names=["gene_3", "gene_4"]),
        "recommend": lfm.tl.recommend(adata, ["cell_0", "cell_1"], n_top=5),
    }


def test_every_tool_reads_the_same(pair):
    found, expected = map(tables, pair)
    assert len(found["anomalies"]) > 3
    for name, table in expected.items():
        got = found[name].reset_index(drop=True)
        pd.testing.assert_frame_equal(got, table.reset_index(drop=True), check_exact=False, rtol=5e-3, atol=1e-3)


def test_new_cells_are_normalised_as_the_reference_was(pair):
    new = counts_of(1, 40)
    for some in (new, new[:, 10:].copy()):
        one, other = some.copy(), logged(some)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fitted genes are absent")
            lfm.tl.project(one, pair[0])
            lfm.tl.project(other, pair[1])
        np.testing.assert_allclose(one.obsm["X_lfm"], other.obsm["X_lfm"], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(one.obs["lfm_total"], some.X.toarray().sum(1))
        no_warning(lfm.tl.anomalies, one)
        assert one.uns["lfm"]["params"]["normalize"] == 1e4


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_a_file_brings_it_back(pair, suffix, tmp_path):
    adata = pair[0]
    getattr(adata, f"write_{suffix}")(tmp_path / "fit")
    read = getattr(ad, f"read_{suffix}")(tmp_path / "fit")
    for one in (adata, read):
        no_warning(lfm.tl.anomalies, one)
    np.testing.assert_array_equal(read.obs["lfm_anomaly"], adata.obs["lfm_anomaly"])
    assert read.uns["lfm"]["values"] == adata.uns["lfm"]["values"]


def test_totals_outlive_genes(pair):
    """Counts of some genes alone are normalised by the totals that the fit read, as values normalised before are."""
    few = [adata[:, adata.var["some"]].copy() for adata in pair]
    for adata in few:
        no_warning(lfm.tl.anomalies, adata)
    np.testing.assert_allclose(few[0].obs["lfm_anomaly"], few[1].obs["lfm_anomaly"], rtol=1e-2, atol=1e-2)
    lost = few[0].copy()
    del lost.obs["lfm_total"]
    with pytest.raises(KeyError, match="lfm_total"):
        lfm.tl.anomalies(lost)


# what cannot be normalised, and what was fitted is no longer there


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"normalize": 0}, ValueError, "`normalize` must be above 0, found 0"),
        ({"normalize": "yes"}, TypeError, "`normalize` must be a number, found 'yes'"),
        ({"normalize": True}, TypeError, "`normalize` must be a number, found True"),
        ({"normalize": 1e300}, ValueError, "`normalize`=1e[+]300 is too large for float32"),
        ({"normalize": 1e-200}, ValueError, "`normalize`=1e-200 is too small for float32"),
        ({"likelihood": "poisson"}, ValueError, "found likelihood='poisson'. Leave one of the two out"),
        ({"likelihood": "ordinal"}, ValueError, "found likelihood='ordinal'. Leave one of the two out"),
        ({"observed": "stored"}, ValueError, "found observed='stored'. Leave one of the two out"),
        ({"size_factors": "odd"}, ValueError, "`size_factors` are for counts. Leave one of the two out"),
    ],
    ids=str,
)
def test_what_cannot_be_normalised_is_refused(options, error, words):
    adata = counts_of()
    before = adata.copy()
    with pytest.raises(error, match=words):
        fit(adata, **{"normalize": 1e4} | options)
    assert set(adata.uns) == set(before.uns)
    assert set(adata.obs) == set(before.obs)


def test_negative_values_are_refused_and_named():
    """At genes that are left out, too: they are a part of the total."""
    adata = counts_of()
    adata.X = adata.X.toarray()
    adata.X[4, 5] = -1
    words = r"normalize=10000 .* 1 value\(s\) that are negative; the first is -1\.0 in cell 'cell_4', gene 'gene_5'"
    with pytest.raises(ValueError, match=words):
        fit(adata, normalize=1e4, mask_var=np.arange(M) != 5)


def test_logarithms_warn():
    counts = counts_of()
    adata = logged(counts)
    adata.layers["counts"] = counts.X
    with pytest.warns(UserWarning, match="look like logarithms already.* leave normalize out") as caught:
        fit(adata, 0, normalize=1e4)
    assert [warning.filename for warning in caught] == [__file__]
    assert "log_base" not in adata.uns["lfm"]["values"]
    no_warning(fit, adata, 0, layer="counts", normalize=1e4)


@pytest.mark.parametrize("scale", [0.37, 1e6])
def test_expected_counts_and_counts_on_another_scale_do_not(scale):
    counts = counts_of()
    other = counts.copy()
    other.X = other.X * (scale * 30)
    fit(counts, normalize=1e4)
    no_warning(fit, other, normalize=1e4)
    same_fit(other, counts)
    # and one stands for the other
    counts.layers["other"] = other.X
    with pytest.warns(UserWarning, match="not what the fit read") as caught:
        lfm.tl.anomalies(counts, layer="other")
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:zero-centering a sparse")
@pytest.mark.parametrize("name", ["logs", "scaled"])
def test_values_that_took_the_place_of_the_counts(pair, name):
    adata = pair[0]
    adata.layers["counts"] = adata.X.copy()
    adata.X = logged(adata).X
    words = r"X holds values that look like logarithms \(from 0 to .*\), and the fit read counts, which it log-norm"
    if name == "scaled":
        sc.pp.scale(adata)
        words = r"normalize=10000 takes logarithms of counts, but X holds .* negative"
    for tool in (lfm.tl.anomalies, lfm.tl.check, lfm.tl.recommend):
        with pytest.raises(ValueError, match=rf"{words}.* layers\['counts'\] matches: pass layer='counts'"):
            tool(adata)
    with pytest.raises(ValueError, match=words):
        lfm.tl.project(adata[:20].copy(), pair[0], key_added="new")
    with pytest.warns(UserWarning, match="not what the fit read"):
        lfm.tl.anomalies(adata, layer="counts")


def test_held_out_entries_are_drawn_from_counts(pair):
    masks = []
    for adata in pair:
        lfm.tl.hold_out(adata, 0.1)
        masks.append(adata.layers["held_out"])
    assert (masks[0] != masks[1]).nnz == 0


def test_fits_stored_before_take_values_as_they_are(pair):
    assert "normalize" not in pair[1].uns["lfm"]["params"]
    assert "lfm_total" not in pair[1].obs
    no_warning(lfm.tl.anomalies, pair[1])


@pytest.mark.parametrize("some", [False, True])
def test_a_fit_reads_counts_three_times_besides_its_epochs(monkeypatch, some):
    """For figures of counts and logarithms; for the exact step; for the cells."""
    adata = counts_of()
    adata.X = sp.csr_array(adata.X)
    options = {"normalize": 1e4, "batch_size": 30, "max_epochs": 1, "mask_var": "some" if some else None}
    found = readings(lambda it: fit(it, **options), adata, monkeypatch)
    # a copy of some genes in memory is another source
    assert found == pytest.approx(4)
