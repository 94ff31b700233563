from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit, logit
from scipy.stats import false_discovery_control, nbinom, spearmanr

import scvi_lfm as lfm
from scvi_lfm.tl import _anomalies

LIKELIHOODS = ("negative_binomial", "poisson", "bernoulli")
MAX_SHARE = 0.01
RARE = 120  # first of the rare genes
COLUMNS = {
    "cell": object,
    "gene": object,
    "y": np.float32,
    "expected": np.float32,
    "p": np.float64,
    "q": np.float64,
    "log_ratio": np.float32,
    "lfdr": np.float64,
    "direction": object,
}


def unpacked(values):
    """Full symmetric matrices from lower triangles stored by rows."""
    k = int((np.sqrt(8 * values.shape[1] + 1) - 1) / 2)
    full = np.zeros((len(values), k, k))
    rows, columns = np.tril_indices(k)
    full[:, rows, columns] = full[:, columns, rows] = values
    return full


def law(rate, phi):
    """The negative binomial of a mean and a dispersion."""
    phi = np.maximum(phi, 1e-8)
    return nbinom(1 / phi, 1 / (1 + phi * rate))


@dataclass(frozen=True)
class Dense:
    """Every score of every entry, computed at once in float64 from the stored fields."""

    y: np.ndarray
    expected: np.ndarray
    tail: np.ndarray  # of the side on which the value lies, the value included
    own: np.ndarray  # log probability of the value
    log_ratio: np.ndarray

    @classmethod
    def of(cls, adata, key="lfm") -> Dense:
        likelihood = adata.uns[key]["params"]["likelihood"]
        fitted = np.isfinite(adata.var[f"{key}_b"].to_numpy())
        var, varm = adata.var[fitted], {name: adata.varm[name][fitted] for name in (key, f"{key}_cov")}
        y = np.asarray(adata.X[:, fitted].todense(), dtype=float)
        cells = np.column_stack([adata.obs[f"{key}_a"], adata.obsm[f"X_{key}"]]).astype(float)
        genes = np.column_stack([var[f"{key}_b"], varm[key]]).astype(float)
        on = np.concatenate([[True], (genes[:, 1:] != 0).any(0)])
        S, T = (unpacked(values)[:, on][:, :, on] for values in (adata.obsm[f"{key}_cov"], varm[f"{key}_cov"]))
        cells, genes = cells[:, on], genes[:, on]
        size = adata.obs[f"{key}_size_factor"].to_numpy(float)[:, None]
        phi = 1 / var[f"{key}_theta"].to_numpy(float) if f"{key}_theta" in var else np.zeros(len(var))
        u, v = cells.copy(), genes.copy()
        u[:, 0] = v[:, 0] = 1
        eta = np.log(size) + adata.uns[key]["mu"] + cells[:, :1] + genes[:, 0] + cells[:, 1:] @ genes[:, 1:].T
        by_cell, by_gene = np.einsum("jk,ikl,jl->ij", v, S, v), np.einsum("ik,jkl,il->ij", u, T, u)
        by_both = np.einsum("ikl,jkl->ij", S[:, 1:, 1:], T[:, 1:, 1:])
        rate = np.exp(eta + (by_cell + by_gene + by_both) / 2)
        if likelihood == "bernoulli":
            weight, score = rate**2 / np.expm1(rate), y * rate / -np.expm1(-rate) - rate
        else:
            weight, score = rate / (1 + phi * rate), (y - rate) / (1 + phi * rate)
        spread = by_cell / (1 - by_cell * weight) + by_gene / (1 - by_gene * weight)
        spread_of_eta = spread + by_both
        here = law(np.exp(eta - spread * score + spread_of_eta / 2), np.exp(spread_of_eta) * (1 + phi) - 1)
        others = (rate / size).sum(0) - rate / size
        average = others / (len(y) - 1)
        square = (((rate / size) ** 2).sum(0) - (rate / size) ** 2) / (len(y) - 1)
        relative = square / average**2
        elsewhere = law(size * average, relative * (1 + phi) - 1)
        if likelihood == "bernoulli":
            presence = 1 - here.pmf(0)
            own, other = (np.where(y > 0, np.log1p(-of.pmf(0)), of.logpmf(0)) for of in (here, elsewhere))
            return cls(y, presence, np.where(y > 0, presence, 1 - presence), own, other - own)
        tail = np.where(y > here.mean(), here.sf(y - 1), here.cdf(y))
        return cls(y, here.mean(), tail, here.logpmf(y), elsewhere.logpmf(y) - here.logpmf(y))

    def p(self, sides=2):
        """Mid tail probabilities."""
        return np.minimum(sides * (self.tail - np.exp(self.own) / 2), 1)

    def q(self):
        """Benjamini-Hochberg over all entries, with the whole of each value's own probability."""
        p = np.minimum(2 * self.tail, 1)
        return false_discovery_control(p.ravel()).reshape(p.shape)

    def share(self) -> float:
        """Share of entries from other cells, by EM over all entries one by one."""
        share = 1e-3
        for _ in range(200):
            share = min(expit(self.log_ratio + logit(share)).mean(), MAX_SHARE)
        return share


def listed(adata, **options):
    result = lfm.tl.anomalies(adata, copy=True, **options)
    entries = lfm.get.anomalies_df(result)
    where = adata.obs_names.get_indexer(entries["cell"]), adata.var_names.get_indexer(entries["gene"])
    return result, entries, where


def draw(likelihood, rate, rng):
    if likelihood == "negative_binomial":
        return nbinom.rvs(20, 20 / (20 + rate), random_state=rng)
    counts = rng.poisson(rate)
    return np.minimum(counts, 1) if likelihood == "bernoulli" else counts


def two_types(likelihood):
    """Two types of 150 cells with 30 markers each, 60 common genes and 60 rare ones, and 28 planted values.

    Markers have a mean of 30 in their type (presence: a rate of 9) and 0.05 in the other. `uns["planted"]` names 14
    markers counted in the wrong type ("up") and 14 missing from their own ("down").
    """
    rng = np.random.default_rng(0)
    n, k, high = 300, 30, 9 if likelihood == "bernoulli" else 30
    second = np.arange(n) >= n // 2
    rate = np.full((n, 2 * k + 120), 0.002 if likelihood == "bernoulli" else 0.05)
    rate[~second, :k] = rate[second, k : 2 * k] = high
    rate[:, 2 * k : 2 * k + 60] = rng.lognormal(-1 if likelihood == "bernoulli" else 1, 0.5, 60)
    rate[:, RARE:] = 0.01
    size = rng.lognormal(0, 0.1, (n, 1))
    counts = draw(likelihood, size * rate, rng).astype(np.float32)
    singles = RARE + np.flatnonzero(counts[:, RARE:].sum(0) == 0)
    counts[rng.integers(n, size=len(singles)), singles] = 1
    adata = ad.AnnData(sp.csr_matrix(counts), obs={"depth": size[:, 0]})
    adata.uns["planted"] = {}
    for direction in ("up", "down"):
        for cell in rng.choice(n, 14, replace=False):
            own, other = rng.integers(k) + k * second[cell], rng.integers(k) + k * ~second[cell]
            gene = other if direction == "up" else own
            counts[cell, gene] = counts[:, gene].max() if direction == "up" else 0
            adata.uns["planted"][adata.obs_names[cell], adata.var_names[gene]] = direction
    adata.X = sp.csr_matrix(counts)
    lfm.tl.fit(adata, 3, likelihood=likelihood, size_factors="depth", progress=False)
    return adata


@pytest.fixture(scope="module", params=LIKELIHOODS)
def types(request):
    return two_types(request.param)


@pytest.fixture(scope="module")
def planted():
    """Negative binomial counts alone."""
    return two_types("negative_binomial")


def test_finds_what_was_planted(types):
    planted = types.uns["planted"]
    result, entries, _ = listed(types)
    found = dict(zip(zip(entries["cell"], entries["gene"], strict=True), entries["direction"], strict=True))
    assert planted.items() <= found.items()
    print(len(entries), [pair in planted for pair in found], entries)


def test_a_gene_does_not_score_for_being_rare(types):
    _, entries, where = listed(types, fdr=0.99)
    planted = types.uns["planted"]
    rare = where[1] >= RARE
    is_planted = np.array([pair in planted for pair in zip(entries["cell"], entries["gene"], strict=True)])
    print(rare.sum(), len(entries), entries[rare].head(5), entries[is_planted].tail(3), entries["p"][rare].min(), entries["p"][is_planted].max())


def test_columns_equal_a_dense_computation(types):
    dense = Dense.of(types)
    _, entries, where = listed(types, fdr=0.9)
    print(len(entries), entries.head(20))
    np.testing.assert_array_equal(entries["y"], dense.y[where])
    for name, ref in (("expected", dense.expected), ("log_ratio", dense.log_ratio), ("p", dense.p()), ("q", dense.q())):
        d = entries[name].to_numpy() / ref[where]
        print(name, np.abs(entries[name].to_numpy() - ref[where]).max(), np.nanmin(d), np.nanmax(d))
    share = dense.share()
    ref = expit(-dense.log_ratio[where] - logit(share))
    print("lfdr", np.abs(entries["lfdr"] - ref).max(), share, entries["lfdr"].to_numpy()[:5], ref[:5], where)
    nats = np.log(1 - share + share * np.exp(dense.log_ratio))
    res, _, _ = listed(types)
    print("cell", np.abs(res.obs["lfm_anomaly"]-nats.sum(1)).max(), nats.sum(1).max(), "gene", np.abs(res.var["lfm_anomaly"]-nats.sum(0)).max())
    print(res.uns["lfm_anomaly"]["params"], (dense.q()<=.1).sum(), (expit(-dense.log_ratio-logit(share))<=.1).sum(), spearmanr(nats.sum(1), (dense.y>0).sum(1)).statistic, res.uns["lfm_anomaly"]["depth_correlation"])
