from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import expit, logit
from scipy.stats import false_discovery_control, norm, spearmanr

import scvi_lfm as lfm

MAX_SHARE = 0.01


@pytest.fixture(scope="module")
def planted():
    """150 x 80 with noise from 0.5 to 2, and four values that belong to the cell at the other end of their gene.

    `uns["planted"]` names them, with the direction in which they lie.
    """
    adata = lfm.datasets.simulate(150, 80, 3, sigma=np.geomspace(0.5, 2, 80))
    variable = np.argsort(-adata.X.var(0) / adata.var["sigma"].to_numpy() ** 2)[:4]
    adata.uns["planted"] = {}
    for j, direction in zip(variable, ("up", "down", "up", "down"), strict=True):
        lowest, highest = adata.X[:, j].argmin(), adata.X[:, j].argmax()
        cell, donor = (lowest, highest) if direction == "up" else (highest, lowest)
        adata.X[cell, j] = adata.X[donor, j]
        adata.uns["planted"][adata.obs_names[cell], adata.var_names[j]] = direction
    lfm.tl.fit(adata, 3, progress=False)
    return adata


@dataclass(frozen=True)
class Dense:
    """Every score of every entry, computed at once in float64."""

    expected: np.ndarray
    distance: np.ndarray
    log_ratio: np.ndarray

    @classmethod
    def of(cls, adata, fields) -> Dense:
        v, u = fields.genes.copy(), fields.cells.copy()
        v[:, 0] = u[:, 0] = 1
        eta = fields.mu + fields.cells[:, :1] + fields.genes[:, 0] + fields.cells[:, 1:] @ fields.genes[:, 1:].T
        S, T = fields.cell_cov, fields.gene_covs(fields.sigma)
        through_cell = np.einsum("jk,kl,jl->j", v, S, v) / fields.sigma**2
        through_gene = np.einsum("ik,jkl,il->ij", u, T, u) / fields.sigma**2
        ratio = through_cell / (1 - through_cell) + through_gene / (1 - through_gene)
        expected = eta - ratio * (adata.X - eta)
        product = np.einsum("kl,jlk->j", S[1:, 1:], T[:, 1:, 1:])
        sd = np.sqrt(ratio * fields.sigma**2 + product + fields.noise**2)
        mean_elsewhere = fields.mu + fields.genes[:, 0] + v @ fields.cell_prior_mean
        var_elsewhere = np.einsum("jk,kl,jl->j", v, fields.cell_prior_cov, v) + fields.noise**2
        elsewhere = norm.logpdf(adata.X, mean_elsewhere, np.sqrt(var_elsewhere))
        return cls(expected, (adata.X - expected) / sd, elsewhere - norm.logpdf(adata.X, expected, sd))

    def share(self) -> float:
        """Share of entries from other cells, by EM over all entries one by one."""
        share = 1e-3
        for _ in range(200):
            share = min(expit(self.log_ratio + logit(share)).mean(), MAX_SHARE)
        return share


@pytest.fixture(scope="module")
def dense(planted, read_fields):
    return Dense.of(planted, read_fields(planted))


def listed(adata, **options):
    result = lfm.tl.anomalies(adata, copy=True, **{"by": "either"} | options)
    entries = lfm.get.anomalies_df(result)
    where = adata.obs_names.get_indexer(entries["cell"]), adata.var_names.get_indexer(entries["gene"])
    return result, entries, where


@pytest.mark.parametrize("by", ["lfdr", "either"])
def test_finds_what_was_planted(planted, by):
    _, entries, _ = listed(planted, by=by)
    top = entries.iloc[:4]
    found = zip(top["cell"], top["gene"], strict=True)
    assert dict(zip(found, top["direction"], strict=True)) == planted.uns["planted"]
    assert (top["lfdr"] < 0.01).all()
    assert (top["q"] < 0.01).all()
    assert (entries["log_ratio"].diff().dropna() <= 0).all()


def test_columns_equal_a_dense_computation(planted, dense):
    _, entries, where = listed(planted, fdr=0.9)
    assert len(entries) >= 4
    np.testing.assert_allclose(entries["expected"], dense.expected[where], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(entries["log_ratio"], dense.log_ratio[where], rtol=1e-3, atol=1e-3)
    p = 2 * norm.sf(np.abs(dense.distance))
    np.testing.assert_allclose(entries["p"], p[where], rtol=1e-3)
    q = false_discovery_control(p.ravel()).reshape(p.shape)
    # by bins of 0.005 standard deviations, and never below the exact ones
    width = np.exp(0.005 * (np.abs(dense.distance[where]) + 0.5))
    near = entries["p"] > 1e-200
    assert (entries["q"] >= 0.998 * q[where])[near].all()
    assert (entries["q"] <= np.minimum(1.01 * width * q[where], 1))[near].all()


@pytest.mark.parametrize("data", ["planted", "pure"])
def test_share_and_local_false_discovery_rate_equal_a_direct_computation(planted, read_fields, data):
    if data == "planted":
        adata = planted.copy()
        rng = np.random.default_rng(1)
        rows, columns = rng.integers(150, size=40), rng.integers(80, size=40)
        adata.X[rows, columns] += rng.choice([-8, 8], 40)
    else:
        adata = lfm.datasets.simulate(150, 80, 3)
        adata.X[0, 0] += 10
        lfm.tl.fit(adata, 3, progress=False)
    dense = Dense.of(adata, read_fields(adata))
    _, entries, where = listed(adata, fdr=0.99)
    share = dense.share()
    np.testing.assert_allclose(entries["lfdr"], expit(-dense.log_ratio[where] - logit(share)), rtol=0.03, atol=1e-3)


def test_scores_of_cells_and_genes_are_summed_evidence(planted, dense):
    result, _, _ = listed(planted)
    share = dense.share()
    nats = np.log(1 - share + share * np.exp(dense.log_ratio))
    np.testing.assert_allclose(result.obs["lfm_anomaly"], nats.sum(1), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(result.var["lfm_anomaly"], nats.sum(0), rtol=0.02, atol=0.02)
    cells, genes = (set(names) for names in zip(*planted.uns["planted"], strict=True))
    assert set(result.obs["lfm_anomaly"].nlargest(len(cells)).index) == cells
    assert set(result.var["lfm_anomaly"].nlargest(len(genes)).index) == genes


@pytest.fixture(scope="module")
def blood(pbmc_fitted):
    return listed(pbmc_fitted)


def test_depth_correlation_is_that_of_the_cell_score_with_genes_detected(pbmc_fitted, blood):
    result, _, _ = blood
    depth = pbmc_fitted.X.getnnz(1)
    expected = spearmanr(result.obs["lfm_anomaly"], depth).statistic
    stored = result.uns["lfm_anomaly"]["depth_correlation"]
    assert stored == pytest.approx(expected, abs=1e-3)
    # measured: -0.1; a score that found shallow cells would be far from zero
    assert abs(stored) < 0.3


@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_direction_lists_its_own_entries_alone(planted, dense, direction):
    _, entries, where = listed(planted, direction=direction)
    sign = 1 if direction == "up" else -1
    assert (entries["direction"] == direction).all()
    assert (sign * (entries["y"] - entries["expected"]) > 0).all()
    np.testing.assert_allclose(entries["p"], norm.sf(sign * dense.distance[where]), rtol=1e-3)
    found = set(zip(entries["cell"], entries["gene"], strict=True))
    assert {
        pair for pair, planted_direction in planted.uns["planted"].items() if planted_direction == direction
    } <= found


@pytest.mark.filterwarnings("ignore:The values of X are not on the scale that the fit read")
@pytest.mark.parametrize("max_entries", [1, 2, 6, 40])
def test_max_entries_keeps_the_top(planted, monkeypatch, max_entries):
    adata = planted.copy()
    # far beyond the last bin of the histograms
    adata.X[[4, 5, 6, 7], [60, 61, 62, 63]] += [60, 70, 80, 90]
    _, everything, _ = listed(adata, fdr=0.9)
    assert len(everything) > max_entries or max_entries == 40
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 80 * 20)
    result, entries, _ = listed(adata, fdr=0.9, max_entries=max_entries)
    assert result.uns["lfm_anomaly"]["params"]["max_entries"] == max_entries
    expected = everything.head(max_entries)
    assert entries["cell"].tolist() == expected["cell"].tolist()
    assert entries["gene"].tolist() == expected["gene"].tolist()
    np.testing.assert_allclose(entries["log_ratio"], expected["log_ratio"], rtol=1e-5)
    np.testing.assert_allclose(entries["lfdr"], expected["lfdr"], rtol=1e-4, atol=1e-12)


def test_nothing_is_listed_where_nothing_is_odd():
    adata = lfm.datasets.simulate(100, 60, 2)
    lfm.tl.fit(adata, 2, progress=False)
    result, entries, _ = listed(adata, fdr=0.01)
    assert len(entries) == 0
    assert np.isfinite(result.obs["lfm_anomaly"]).all()
    assert result.uns["lfm_anomaly"]["params"]["n_by_ratio"] == 0


@pytest.fixture(scope="module")
def two_types():
    """Two types of 150 cells with 30 markers each, 60 common genes, and 60 genes that one cell alone expresses.

    Twenty cells express one marker of the other type at the level it has there: they are what should be found.
    """
    rng = np.random.default_rng(0)
    n, k = 300, 30
    X = np.zeros((n, 2 * k + 120))
    X[: n // 2, :k] = rng.normal(2, 0.5, (n // 2, k))
    X[n // 2 :, k : 2 * k] = rng.normal(2, 0.5, (n // 2, k))
    X[:, 2 * k : 2 * k + 60] = rng.normal(0.5, 0.3, (n, 60))
    rare = {(int(i), 2 * k + 60 + j) for j, i in enumerate(rng.integers(n, size=60))}
    odd = {(int(i), int(k + j)) for i, j in zip(rng.integers(150, size=10), rng.integers(k, size=10), strict=True)}
    odd |= {(int(150 + i), int(j)) for i, j in zip(rng.integers(150, size=10), rng.integers(k, size=10), strict=True)}
    for i, j in rare | odd:
        X[i, j] = 2
    adata = ad.AnnData(X.astype(np.float32))
    lfm.tl.fit(adata, 3, progress=False)
    return adata, odd, rare


def test_a_gene_does_not_score_for_being_rare(two_types):
    adata, odd, rare = two_types
    _, entries, where = listed(adata, fdr=0.5)
    log_ratio, p = (dict(zip(zip(*where, strict=True), entries[name], strict=True)) for name in ("log_ratio", "p"))
    assert odd <= set(log_ratio)
    assert min(log_ratio[entry] for entry in odd) > 5
    # the rare values are the least probable of all, and yet look like no other cell
    assert rare <= set(p)
    assert max(p[entry] for entry in rare) < min(p[entry] for entry in odd)
    assert max(log_ratio[entry] for entry in rare) < 0
    assert sum(entry in odd for entry in list(log_ratio)[:25]) >= 18


def test_top_entries_of_blood_cells_are_not_singletons(pbmc_fitted, blood):
    _, entries, where = blood
    detected = pbmc_fitted.X.getnnz(0)[where[1]]
    by_ratio, by_tail = detected[:200], detected[np.argsort(entries["p"], kind="stable")[:200]]
    # measured: 174 cells of 1,200 and 7
    assert np.median(by_ratio) > 60
    assert np.median(by_tail) < 20


def test_params_and_fields(planted):
    result, entries, _ = listed(planted, fdr=0.2)
    params = result.uns["lfm_anomaly"]["params"]
    assert {name: params[name] for name in ("key", "direction", "fdr", "max_entries")} == {
        "key": "lfm",
        "direction": "both",
        "fdr": 0.2,
        "max_entries": 100_000,
    }
    assert "layer" not in params
    assert params["n_by_ratio"] == pytest.approx((entries["lfdr"] <= 0.2).sum(), abs=1)
    assert params["n_by_tail"] == pytest.approx((entries["q"] <= 0.2).sum(), abs=1)
    assert "lfm_anomaly" not in planted.uns


def test_genes_that_were_not_fitted_have_no_score(planted):
    adata = planted[:, :40].copy()
    lfm.tl.fit(adata, 2, mask_var=np.arange(40) != 5, progress=False)
    result, entries, _ = listed(adata, fdr=0.9)
    assert np.isnan(result.var["lfm_anomaly"].iloc[5])
    assert np.isfinite(result.var["lfm_anomaly"].drop("gene_5")).all()
    assert "gene_5" not in set(entries["gene"])


def test_blocks_of_cells_and_sparse_values_change_nothing(planted, monkeypatch):
    result, entries, _ = listed(planted, fdr=0.9)
    sparse = planted.copy()
    sparse.X = sp.csr_matrix(planted.X)
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 1)
    other, same, _ = listed(sparse, fdr=0.9)
    assert same["cell"].tolist() == entries["cell"].tolist()
    np.testing.assert_allclose(same["log_ratio"], entries["log_ratio"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.obs["lfm_anomaly"], result.obs["lfm_anomaly"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial"])
def test_lists_what_passes_the_question_asked(likelihood):
    adata = lfm.datasets.simulate(100, 60, 2, likelihood=likelihood, mu=0.3)
    values = adata.to_df().to_numpy(copy=True)
    values[[3, 40, 77], [5, 21, 48]] += 12 + 3 * values.max()
    adata.X = values
    lfm.tl.fit(adata, 2, progress=False)
    tables = {by: listed(adata, by=by, fdr=0.5)[1] for by in ("lfdr", "q", "either")}
    by_default = lfm.tl.anomalies(adata, fdr=0.5, copy=True)
    taken = "lfdr" if likelihood == "normal" else "either"
    pd.testing.assert_frame_equal(lfm.get.anomalies_df(by_default), tables[taken])
    assert by_default.uns["lfm_anomaly"]["params"]["by"] == taken

    everything = tables["either"]
    found = {by: set(table[["cell", "gene"]].itertuples(index=False, name=None)) for by, table in tables.items()}
    assert found["lfdr"] != found["q"]
    assert found["lfdr"] | found["q"] == found["either"]
    for by in ("lfdr", "q"):
        # histograms have bins: entries within one of the level may go either way
        clear = everything[(everything[by] - 0.5).abs() > 0.01]
        for passes, table in ((True, clear[clear[by] < 0.5]), (False, clear[clear[by] > 0.5])):
            names = set(table[["cell", "gene"]].itertuples(index=False, name=None))
            assert names <= found[by] if passes else names.isdisjoint(found[by])
    assert tables["lfdr"]["log_ratio"].is_monotonic_decreasing
    assert tables["q"]["p"].is_monotonic_increasing


def test_the_most_improbable_are_kept(planted):
    everything, some = (listed(planted, by="q", fdr=0.9, max_entries=n)[1] for n in (1000, 5))
    pd.testing.assert_frame_equal(some, everything.head(5))
