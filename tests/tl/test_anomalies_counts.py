from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.sparse as sp
import torch
from scipy import optimize
from scipy.special import expit, logit, softmax, xlogy
from scipy.stats import false_discovery_control, nbinom, spearmanr

import scvi_lfm as lfm
from scvi_lfm.data import CellMatrix
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.anomalies.odd_counts import without_odd_counts
from scvi_lfm.posterior.anomalies.other_cells import OwnAndOther
from scvi_lfm.posterior.anomalies.scan import CountScan
from scvi_lfm.posterior.dense_blocks import DenseBlocks
from triangles import unpacked

LIKELIHOODS = ("negative_binomial", "poisson", "bernoulli")
MAX_SHARE = 0.01
RARE = 120  # first of the rare genes
COLUMNS = {
    "cell": str,
    "gene": str,
    "y": np.float32,
    "expected": np.float32,
    "p": np.float64,
    "q": np.float64,
    "log_ratio": np.float32,
    "lfdr": np.float64,
    "direction": str,
}


def law(rate, phi):
    """The negative binomial of a mean and a dispersion."""
    phi = np.maximum(phi, 1e-8)
    return nbinom(1 / phi, 1 / (1 + phi * rate))


def presence(mean, var):
    """P(y = 1) and P(y = 0) where the log rate is Normal, by the trapezoid rule."""
    present, absent, total = np.zeros_like(mean), np.zeros_like(mean), 0.0
    for z in np.linspace(-8, 8, 161):
        rate, weight = np.exp(mean + np.sqrt(var) * z), np.exp(-(z**2) / 2)
        present -= weight * np.expm1(-rate)
        absent += weight * np.exp(-rate)
        total += weight
    return present / total, absent / total


def without_own(values):
    """Mean over all other cells, for each cell."""
    return (values.sum(0) - values) / (len(values) - 1)


@dataclass(frozen=True)
class Rows:
    """q of cells and genes with full covariances, and what the likelihood needs besides."""

    likelihood: str
    cells: np.ndarray  # (n, k)
    S: np.ndarray
    genes: np.ndarray  # (m, k)
    T: np.ndarray
    mu: float
    size: np.ndarray  # (n, 1)
    phi: np.ndarray  # (m,)

    @classmethod
    def of(cls, adata, key) -> Rows:
        fitted = np.isfinite(adata.var[f"{key}_b"].to_numpy())
        var, varm = adata.var[fitted], {name: adata.varm[name][fitted] for name in (key, f"{key}_cov")}
        cells = np.column_stack([adata.obs[f"{key}_a"], adata.obsm[f"X_{key}"]]).astype(float)
        genes = np.column_stack([var[f"{key}_b"], varm[key]]).astype(float)
        on = np.concatenate([[True], (genes[:, 1:] != 0).any(0)])
        S, T = (unpacked(values)[:, on][:, :, on] for values in (adata.obsm[f"{key}_cov"], varm[f"{key}_cov"]))
        size = adata.obs[f"{key}_size_factor"].to_numpy(float)[:, None]
        phi = 1 / var[f"{key}_theta"].to_numpy(float) if f"{key}_theta" in var else np.zeros(len(var))
        likelihood, mu = adata.uns[key]["params"]["likelihood"], adata.uns[key]["mu"]
        return cls(likelihood, cells[:, on], S, genes[:, on], T, mu, size, phi)

    def uv(self):
        u, v = self.cells.copy(), self.genes.copy()
        u[:, 0] = v[:, 0] = 1
        return u, v

    def parts(self):
        """Mean of eta and its variance by the cell, by the gene and by both, (n, m) each."""
        u, v = self.uv()
        eta = self.mu + self.cells[:, :1] + self.genes[:, 0] + self.cells[:, 1:] @ self.genes[:, 1:].T
        by_cell, by_gene = np.einsum("jk,ikl,jl->ij", v, self.S, v), np.einsum("ik,jkl,il->ij", u, self.T, u)
        return np.log(self.size) + eta, by_cell, by_gene, np.einsum("ikl,jkl->ij", self.S[:, 1:, 1:], self.T[:, 1:, 1:])

    def rate(self):
        eta, *var = self.parts()
        return np.exp(eta + sum(var) / 2)

    def weight_and_score(self, y):
        rate = self.rate()
        if self.likelihood == "bernoulli":
            return rate**2 / np.expm1(np.minimum(rate, 500)), y * rate / -np.expm1(-rate) - rate
        return rate / (1 + self.phi * rate), (y - rate) / (1 + self.phi * rate)

    def left_out(self, y, seen=1.0):
        """Moments of eta for each count without itself, of whose pull a share is still `seen`."""
        eta, by_cell, by_gene, by_both = self.parts()
        weight, score = self.weight_and_score(y)
        spread = sum(part / (1 - np.minimum(part * weight, 0.999)) for part in (by_cell, by_gene))
        return (eta - spread * score * seen).clip(-50, 30), spread + by_both

    def here(self, y, seen=1.0):
        mean, var = self.left_out(y, seen)
        return law(np.exp(mean + var / 2), np.exp(var) * (1 + self.phi) - 1)

    def elsewhere(self):
        unscaled = self.rate() / self.size
        average = without_own(unscaled)
        return law(self.size * average, without_own(unscaled**2) / average**2 * (1 + self.phi) - 1)

    def without(self, y, taken) -> tuple[Rows, np.ndarray]:
        """q with means that have not seen the shares `taken` of the counts, and what is left of each one's pull."""
        u, v = self.uv()
        weight, score = (taken * part for part in self.weight_and_score(y))
        cells = taken_from(self.cells, self.S, weight, score, v, most=0.5)
        new = replace(self, cells=cells, genes=taken_from(self.genes, self.T, weight.T, score.T, u, most=1))
        before, after = self.parts()[0], new.parts()[0]
        pull = np.maximum(before - self.left_out(y)[0], 1e-12)
        return new, np.where(taken > 0, np.maximum(1 - ((before - after) / pull).clip(0, 1), 1 - taken), 1)


def taken_from(mean, cov, weight, score, x, most):
    """Means of rows without observations of x."""
    mean = mean.copy()
    for i in np.flatnonzero(weight.any(1)):
        # with B' C^-1 B = I, the eigenvalues of what is taken out are leverages
        precision = np.linalg.inv(cov[i])
        leverages, basis = scipy.linalg.eigh((weight[i, :, None] * x).T @ x, precision)
        pull = score[i] @ x
        step = basis @ np.diag(1 / (1 - leverages.clip(0, 0.8))) @ basis.T @ pull
        mean[i] -= step * min(1, most / np.sqrt(step @ pull / precision[0, 0]))
    return mean


def fitted_share(log_ratio):
    """Share of entries from other cells, by EM over all entries, log ratios in steps of 0.025."""
    log_ratio = 0.025 * (np.floor(log_ratio / 0.025) + 0.5)
    share = 1e-3
    for _ in range(200):
        share = min(expit(log_ratio + logit(share)).mean(), MAX_SHARE)
    return share


def bursts(y, rate, epsilon, size):
    """Log probability of a gross error: a burst, begun by one of the molecules that were expected."""
    with np.errstate(divide="ignore"):
        begun = np.log(-np.expm1(-epsilon * rate))
    added = np.maximum(y - rate, 0)
    return np.where(y > rate, begun + added * np.log(size / (1 + size)) - np.log1p(size), -np.inf)


def better_by(own, other, y, rate):
    """Nats by which other cells, or the burst that suits best, explain each count better than its own cell."""
    added = np.maximum(y - rate, 1e-12)
    best = np.maximum(other, np.log(rate) + xlogy(added, added / (1 + added)) - np.log1p(added))
    return np.where(y > rate, best - own, -np.inf)


def odd(own, other, y, rate, share, candidate):
    """Probability that each count is not its own cell's, and the chance and the mean size of a gross error."""
    epsilon, size = 1e-3, 10.0
    for last in [False] * 100 + [True]:
        terms = np.stack([own, np.log(share) + other, bursts(y, rate, epsilon, size)])
        shares = np.where(candidate, softmax(terms, axis=0), 0)
        if not last:
            total = shares[2].sum()
            size = max((shares[2] * (y - rate)).sum() / total, 1)
            epsilon = total / y.sum()
    return np.where(candidate, 1 - shares[0], 0), epsilon, size


@dataclass(frozen=True)
class Dense:
    """Every score of every entry, computed at once in float64 from the stored fields."""

    y: np.ndarray
    expected: np.ndarray
    tail: np.ndarray  # of the side on which the value lies, the value included
    own: np.ndarray  # log probability of the value
    log_ratio: np.ndarray
    share: float  # of entries from other cells

    @classmethod
    def of(cls, adata, key="lfm") -> Dense:
        fitted = Rows.of(adata, key)
        y = np.asarray(adata.X[:, np.isfinite(adata.var[f"{key}_b"].to_numpy())].todense(), dtype=float)
        if fitted.likelihood == "bernoulli":
            return cls.of_presence(y, fitted)
        other = fitted.elsewhere().logpmf(y)
        here, rows, seen = fitted.here(y), fitted, 1.0
        share = fitted_share(other - here.logpmf(y))
        candidate = better_by(here.logpmf(y), other, y, here.mean()) > 3
        for _ in range(3):
            here = rows.here(y, seen)
            taken, _, _ = odd(here.logpmf(y), other, y, here.mean(), share, candidate)
            taken[taken <= 1e-3] = 0
            rows, seen = fitted.without(y, taken)
        here = rows.here(y, seen)
        _, epsilon, size = odd(here.logpmf(y), other, y, here.mean(), share, candidate)
        own = np.logaddexp(here.logpmf(y), bursts(y, here.mean(), epsilon, size))
        tail = np.where(y > here.mean(), here.sf(y - 1), here.cdf(y))
        return cls(y, here.mean(), tail, here.logpmf(y), rows.elsewhere().logpmf(y) - own, share)

    @classmethod
    def of_presence(cls, y, fitted) -> Dense:
        present, absent = presence(*fitted.left_out(y))
        absent_elsewhere = (1 - without_own(-np.expm1(-fitted.rate() / fitted.size))) ** fitted.size
        own, other = np.where(y > 0, present, absent), np.where(y > 0, 1 - absent_elsewhere, absent_elsewhere)
        log_ratio = np.log(other / own)
        return cls(y, present, own, np.log(own), log_ratio, fitted_share(log_ratio))

    def p(self, sides=2):
        """Mid tail probabilities."""
        return np.minimum(sides * (self.tail - np.exp(self.own) / 2), 1)

    def q(self):
        """Benjamini-Hochberg over all entries, with the whole of each value's own probability."""
        p = np.minimum(2 * self.tail, 1)
        return false_discovery_control(p.ravel()).reshape(p.shape)


def listed(adata, **options):
    result = lfm.tl.anomalies(adata, copy=True, **options)
    entries = lfm.get.anomalies_df(result)
    where = adata.obs_names.get_indexer(entries["cell"]), adata.var_names.get_indexer(entries["gene"])
    return result, entries, where


def changed(likelihood, seed):
    """120 x 80 of one likelihood with a fit, some values of which were changed after they were drawn."""
    binary = likelihood == "bernoulli"
    adata = lfm.datasets.simulate(120, 80, 2, likelihood=likelihood, mu=-0.5 if binary else 0.3)
    rng = np.random.default_rng(seed)
    values = adata.X.toarray()
    rows, columns = rng.integers(120, size=20), rng.integers(80, size=20)
    values[rows, columns] = 1 - values[rows, columns] if binary else values[rows, columns] * 2 + 8
    adata.X = sp.csr_matrix(values)
    lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False)
    return adata


def on_the_edge(adata):
    """Whether single precision decides which counts are looked at."""
    rows, y = Rows.of(adata, "lfm"), adata.X.toarray().astype(float)
    here, other = rows.here(y), rows.elsewhere().logpmf(y)
    added = better_by(here.logpmf(y), other, y, here.mean())
    return np.abs(added - 3).min() < 1e-3


@pytest.fixture(scope="module", params=LIKELIHOODS)
def simulated(request):
    seeds = itertools.count(1)
    adata = changed(request.param, next(seeds))
    while request.param != "bernoulli" and on_the_edge(adata):
        adata = changed(request.param, next(seeds))
    return adata


@pytest.fixture(scope="module")
def dense(simulated):
    return Dense.of(simulated)


def drawn(likelihood, rate, rng):
    return nbinom.rvs(20, 20 / (20 + rate), random_state=rng) if likelihood != "poisson" else rng.poisson(rate)


def draw_types(likelihood):
    """Two types of 150 cells with 30 markers each, 60 common genes and 60 rare ones, and 28 planted values.

    Markers have a mean of 30 in their type and 0.05 in the other. `uns["planted"]` names 14 markers counted in the
    wrong type ("up") and 14 missing from their own ("down").
    """
    rng = np.random.default_rng(0)
    n, k = 300, 30
    second = np.arange(n) >= n // 2
    rate = np.full((n, RARE + 60), 0.05)
    rate[~second, :k] = rate[second, k : 2 * k] = 30
    rate[:, 2 * k : RARE] = rng.lognormal(1, 0.5, 60)
    rate[:, RARE:] = 0.01
    size = rng.lognormal(0, 0.1, (n, 1))
    counts = drawn(likelihood, size * rate, rng).astype(np.float32)
    singles = RARE + np.flatnonzero(counts[:, RARE:].sum(0) == 0)
    counts[rng.integers(n, size=len(singles)), singles] = 1
    planted = {}
    for direction in ("up", "down"):
        for cell in rng.choice(n, 14, replace=False):
            own, other = rng.integers(k) + k * second[cell], rng.integers(k) + k * ~second[cell]
            gene = other if direction == "up" else own
            counts[cell, gene] = 30 if direction == "up" else 0
            planted[f"cell_{cell}", f"gene_{gene}"] = direction
    adata = ad.AnnData(sp.csr_matrix(counts), obs={"depth": size[:, 0]}, uns={"planted": planted})
    adata.obs_names, adata.var_names = [f"cell_{i}" for i in range(n)], [f"gene_{j}" for j in range(RARE + 60)]
    return adata


@cache
def two_types(likelihood):
    """Those with a fit. Shared: copy before writing into it."""
    adata = draw_types(likelihood)
    lfm.tl.fit(adata, 1, likelihood=likelihood, size_factors="depth", progress=False)
    return adata


@pytest.fixture(scope="module", params=["negative_binomial", "poisson"])
def types(request):
    return two_types(request.param)


@pytest.fixture(scope="module")
def planted():
    return two_types("negative_binomial")


def pairs(entries):
    return list(zip(entries["cell"], entries["gene"], strict=True))


# every entry, against a dense computation


def scan_of(adata, y, direction):
    """The scan of a fit, and its scores of the counts."""
    blocks = DenseBlocks(CellMatrix.of(y.numpy()), y.device)
    cleaned = without_odd_counts(read_fit(adata, "lfm").posterior, blocks)
    scan = CountScan(OwnAndOther(cleaned.posterior, blocks), direction, cleaned.gross, 0.1)
    return scan, scan.score(y, cleaned.posterior, cleaned.taken)


@pytest.mark.parametrize("direction", ["both", "up", "down"])
@pytest.mark.half_slow
def test_scores_of_every_entry(simulated, dense, direction):
    y = torch.from_numpy(dense.y).float()
    scan, scores = scan_of(simulated, y, direction)
    above = dense.y > dense.expected
    asked = {"both": above | ~above, "up": above, "down": ~above}[direction]
    np.testing.assert_allclose(scores.expected, dense.expected, rtol=1e-4)
    np.testing.assert_allclose(scores.log_ratio[asked], dense.log_ratio[asked], rtol=1e-3, atol=1e-3)
    assert (scores.log_ratio[~asked] == -torch.inf).all()
    assert (scores.distance[~asked] < 0).all()
    sides, at = 2 if direction == "both" else 1, torch.ones_like(y).nonzero(as_tuple=True)
    np.testing.assert_allclose(
        scan.p_of(y.flatten(), scores.distance.flatten(), scores.own.at(at)).reshape(y.shape)[asked],
        dense.p(sides)[asked],
        rtol=2e-3,
    )
    # the probability of the value alone stands in where it is above the level asked for
    rare = asked & (dense.own < np.log(0.1))
    tail = np.minimum(sides * dense.tail, 1)
    np.testing.assert_allclose((-scores.distance[rare]).exp(), tail[rare], rtol=2e-3)
    assert ((-scores.distance[asked & ~rare]).exp() > 0.0999).all()


def test_columns_equal_a_dense_computation(simulated, dense):
    result, entries, where = listed(simulated, fdr=0.9)
    share = dense.share
    if simulated.uns["lfm"]["params"]["likelihood"] != "bernoulli":  # two values leave little room to be odd
        assert len(entries) >= 14
    np.testing.assert_array_equal(entries["y"], dense.y[where])
    np.testing.assert_allclose(entries["expected"], dense.expected[where], rtol=1e-4)
    np.testing.assert_allclose(entries["p"], dense.p()[where], rtol=2e-3)
    np.testing.assert_allclose(entries["log_ratio"], dense.log_ratio[where], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(entries["lfdr"], expit(-dense.log_ratio[where] - logit(share)), rtol=0.03, atol=1e-4)
    nats = np.log(1 - share + share * np.exp(dense.log_ratio))
    np.testing.assert_allclose(result.obs["lfm_anomaly"], nats.sum(1), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(result.var["lfm_anomaly"], nats.sum(0), rtol=0.02, atol=0.02)
    depth = (dense.y > 0).sum(1)
    expected = spearmanr(result.obs["lfm_anomaly"], depth).statistic
    assert result.uns["lfm_anomaly"]["depth_correlation"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("fdr", [0.05, 0.3])
def test_false_discovery_rates_by_histogram_equal_those_of_all_entries(simulated, dense, fdr):
    result, entries, where = listed(simulated, fdr=fdr)
    exact = dense.q()
    q = entries["q"].to_numpy()
    passing = q <= fdr
    # bins of 0.02 in minus log p make q at most 2 per cent larger, and never smaller
    assert (q >= 0.999 * exact[where])[passing].all()
    assert (q <= 1.021 * exact[where])[passing & (exact[where] > 1e-60)].all()
    n_by_tail = result.uns["lfm_anomaly"]["params"]["n_by_tail"]
    assert passing.sum() == n_by_tail
    assert (exact <= fdr / 1.021).sum() <= n_by_tail <= (exact <= fdr).sum()
    lfdr = expit(-dense.log_ratio - logit(dense.share))
    assert result.uns["lfm_anomaly"]["params"]["n_by_ratio"] == pytest.approx((lfdr <= fdr).sum(), abs=1)
    assert len(entries) == ((entries["q"] <= fdr) | (entries["lfdr"] <= 1.03 * fdr)).sum()


def test_p_and_log_ratio_of_one_entry_by_hand(planted):
    """From what `expected` says of the rate, and the law of the gene over the other cells."""
    _, entries, _ = listed(planted)
    row = entries[entries["direction"] == "down"].iloc[0]
    assert row["y"] == 0
    # all of a zero's tail is its own probability
    p = row["p"]
    phi = optimize.brentq(lambda phi: law(row["expected"], phi).pmf(0) - p, 1e-6, 10)
    theta = planted.var["lfm_theta"][row["gene"]]
    assert 1 / theta < phi < 1 / theta + 0.1
    marked = np.isin(planted.X[:, planted.var_names.get_loc(row["gene"])].toarray()[:, 0] > 5, True)
    rates = np.where(marked, row["expected"], 0.1)
    relative = rates.var() / rates.mean() ** 2
    elsewhere = law(rates.mean(), (1 + relative) * (1 + 1 / theta) - 1)
    assert row["log_ratio"] == pytest.approx(elsewhere.logpmf(0) - np.log(p), abs=1)


@pytest.mark.parametrize("likelihood", ["negative_binomial"])
def test_scores_far_out_keep_their_digits(likelihood):
    adata = lfm.datasets.simulate(80, 50, 1, likelihood=likelihood, mu=1)
    values = adata.X.toarray()
    values[:, 7] = 0
    values[11, 7] = 20_000
    values[12, 8] = 500
    adata.X = sp.csr_matrix(values)
    lfm.tl.fit(adata, 2, likelihood=likelihood, size_factors="size_factor", progress=False)
    dense = Dense.of(adata)
    y = torch.from_numpy(values)
    _, scores = scan_of(adata, y, "both")
    for part in (scores.expected, scores.distance, scores.log_ratio):
        assert torch.isfinite(part).all()
    odd = [11, 12], [7, 8]
    np.testing.assert_allclose(scores.expected[odd], dense.expected[odd], rtol=0.01)
    np.testing.assert_allclose(scores.log_ratio[odd], dense.log_ratio[odd], rtol=0.01, atol=0.02)


# what is found


@pytest.mark.parametrize("direction", ["both", "up", "down"])
@pytest.mark.half_slow
def test_finds_what_was_planted(types, direction):
    _, entries, where = listed(types, direction=direction)
    wanted = {pair: of for pair, of in types.uns["planted"].items() if direction in {"both", of}}
    found = dict(zip(pairs(entries), entries["direction"], strict=True))
    assert wanted.items() <= found.items()
    top = entries.iloc[: len(wanted)]
    assert set(pairs(top)) == set(wanted)
    assert (top["lfdr"] < 0.05).all()
    assert (top["q"] < 0.05).all()
    assert (entries["log_ratio"].diff().dropna() <= 0).all()
    missing = top[top["direction"] == "down"]
    assert (missing["expected"] > 8).all()
    assert len(entries) <= len(wanted) + 5
    if direction != "both":
        assert set(entries["direction"]) == {direction}


def test_the_direction_that_is_asked_for_changes_no_local_rate(types):
    _, both, _ = listed(types)
    for direction in ("up", "down"):
        _, one, _ = listed(types, direction=direction)
        joined = one.merge(both, on=["cell", "gene"], suffixes=("", "_of_both"))
        assert len(joined) >= 14
        np.testing.assert_allclose(joined["lfdr"], joined["lfdr_of_both"])


def test_cells_and_genes_of_what_was_planted_score_highest(types):
    result, _, _ = listed(types)
    cells, genes = (set(names) for names in zip(*types.uns["planted"], strict=True))
    assert set(result.obs["lfm_anomaly"].nlargest(len(cells)).index) == cells
    assert set(result.var["lfm_anomaly"].nlargest(len(genes)).index) == genes


def test_a_gene_does_not_score_for_being_rare(types):
    _, entries, where = listed(types, fdr=0.99)
    rare = where[1] >= RARE
    chosen = entries.index.isin([i for i, pair in enumerate(pairs(entries)) if pair in types.uns["planted"]])
    assert entries["log_ratio"][chosen].min() > 8
    assert not (entries["log_ratio"][rare] > 2.5).any()
    assert not rare[:30].any()


def test_planted_presence_and_absence_look_like_other_cells():
    adata = draw_types("poisson")
    adata.X = (adata.X > 0).astype(np.float32)
    lfm.tl.fit(adata, 1, likelihood="bernoulli", size_factors="depth", progress=False)
    dense = Dense.of(adata)
    cells, genes = zip(*adata.uns["planted"], strict=True)
    planted = dense.log_ratio[adata.obs_names.get_indexer(cells), adata.var_names.get_indexer(genes)]
    assert planted.min() > 1
    assert np.mean(dense.log_ratio > planted.min()) < 0.02
    # two values leave little room to be odd: none passes
    result, entries, _ = listed(adata, fdr=0.5)
    assert len(entries) == 0
    assert np.isfinite(result.obs["lfm_anomaly"]).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_nothing_is_listed_where_nothing_is_odd(likelihood):
    adata = lfm.datasets.simulate(150, 100, 2, likelihood=likelihood, mu=-0.5)
    seen = np.asarray(adata.X.sum(axis=0)).ravel() > 0  # fit warns of genes without a value
    adata = adata[:, seen].copy()
    lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False)
    result, entries, _ = listed(adata)
    params = result.uns["lfm_anomaly"]["params"]
    assert len(entries) == params["n_by_tail"] == params["n_by_ratio"] == 0
    assert np.isfinite(result.obs["lfm_anomaly"]).all()
    assert np.isfinite(result.var["lfm_anomaly"]).all()
    assert abs(result.uns["lfm_anomaly"]["depth_correlation"]) < 0.4


# what is stored


def test_fields(planted):
    result, entries, _ = listed(planted, fdr=0.2, max_entries=20)
    # pandas has its own types of strings, by version
    assert entries.dtypes.to_dict() == {name: pd.Series([kind()]).dtype for name, kind in COLUMNS.items()}
    assert entries.columns.tolist() == list(COLUMNS)
    assert result.obs["lfm_anomaly"].dtype == result.var["lfm_anomaly"].dtype == np.float32
    assert set(result.uns["lfm_anomaly"]) == {"params", "entries", "depth_correlation"}
    params = result.uns["lfm_anomaly"]["params"]
    found = {"n_by_tail": params["n_by_tail"], "n_by_ratio": params["n_by_ratio"]}
    assert params == {"key": "lfm", "direction": "both", "by": "either", "fdr": 0.2, "max_entries": 20, **found}
    assert min(found.values()) >= 28
    assert "lfm_anomaly" not in planted.uns


def test_tables_survive_a_file(planted, tmp_path):
    result, entries, _ = listed(planted)
    result.uns["planted"] = {}
    result.write_h5ad(tmp_path / "counts.h5ad")
    again = ad.read_h5ad(tmp_path / "counts.h5ad")
    pd.testing.assert_frame_equal(lfm.get.anomalies_df(again), entries, check_dtype=False)
    lfm.tl.anomalies(again, key_added="again")
    pd.testing.assert_frame_equal(lfm.get.anomalies_df(again, key="again"), entries)
    np.testing.assert_array_equal(again.obs["again"], result.obs["lfm_anomaly"])


def test_max_entries_keeps_the_top(planted, monkeypatch):
    _, everything, _ = listed(planted, fdr=0.9)
    assert len(everything) > 28
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 180 * 40)
    for max_entries in (1, 28):
        _, entries, _ = listed(planted, fdr=0.9, max_entries=max_entries)
        expected = everything.head(max_entries)
        assert pairs(entries) == pairs(expected)
        np.testing.assert_allclose(entries["log_ratio"], expected["log_ratio"], rtol=1e-4)


def test_a_wider_rate_lists_more(planted):
    narrow, wide = (set(pairs(listed(planted, fdr=fdr)[1])) for fdr in (0.01, 0.9))
    assert narrow < wide


def test_blocks_dense_values_and_covariances_made_anew_change_nothing(planted, monkeypatch):
    result, entries, _ = listed(planted, fdr=0.5)
    other = planted.copy()
    other.X = planted.X.toarray()
    del other.obsm["lfm_cov"]
    monkeypatch.setattr("scvi_lfm.posterior.dense_blocks.ENTRIES_PER_BLOCK", 180 * 70)
    changed, same, _ = listed(other, fdr=0.5)
    assert pairs(same) == pairs(entries)
    for name in ("expected", "p", "log_ratio"):
        np.testing.assert_allclose(same[name], entries[name], rtol=0.01)
    np.testing.assert_allclose(changed.obs["lfm_anomaly"], result.obs["lfm_anomaly"], rtol=0.01, atol=1e-3)


def test_some_of_the_cells_are_compared_among_themselves(planted):
    _, entries, _ = listed(planted)
    part = planted[np.arange(300) % 3 > 0].copy()
    _, some, _ = listed(part)
    kept = entries[entries["cell"].isin(part.obs_names)]
    both = some.merge(kept, on=["cell", "gene"], suffixes=("", "_of_all"))
    assert len(both) >= len(kept) - 2
    # odd counts of cells that are not there cannot be taken out: a few genes expect more
    gone = set(entries["gene"][~entries["cell"].isin(part.obs_names)])
    apart = ~both["gene"].isin(gone)
    assert apart.sum() >= 8
    for name in ("y", "expected", "p"):
        np.testing.assert_allclose(both[name][apart], both[f"{name}_of_all"][apart], rtol=2e-3)
    # far out, gross errors bound the log ratio, and how rare they are is learned from the cells at hand
    bounded = both["log_ratio"] > 20
    assert (bounded == (both["log_ratio_of_all"] > 20)).all()
    assert (~bounded & apart).sum() >= 5
    compared = both[~bounded & apart]
    np.testing.assert_allclose(compared["log_ratio"], compared["log_ratio_of_all"], atol=0.5)
    assert not np.array_equal(both["log_ratio"], both["log_ratio_of_all"])


def test_genes_that_were_not_fitted_have_no_score(planted):
    adata = planted[::3, :60].copy()
    lfm.tl.fit(adata, 1, mask_var=np.arange(60) != 5, size_factors="depth", progress=False)
    result, entries, _ = listed(adata, fdr=0.9)
    assert np.isnan(result.var["lfm_anomaly"].iloc[5])
    assert np.isfinite(result.var["lfm_anomaly"].drop("gene_5")).all()
    assert "gene_5" not in set(entries["gene"])


@pytest.mark.slow
def test_a_layer_of_counts(planted):
    adata = planted[::3, :60].copy()
    lfm.tl.fit(adata, 1, size_factors="depth", progress=False)
    _, of_counts, _ = listed(adata)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    lfm.tl.fit(adata, 1, layer="counts", size_factors="depth", progress=False)
    result, entries, _ = listed(adata)
    assert len(entries) > 3
    pd.testing.assert_frame_equal(entries, of_counts)
    assert result.uns["lfm_anomaly"]["params"]["layer"] == "counts"
    adata.layers["more"] = adata.layers["counts"] * 2
    with pytest.warns(UserWarning, match="layer='more' is not what the fit read"):
        lfm.tl.anomalies(adata, layer="more")
    assert adata.uns["lfm_anomaly"]["params"]["layer"] == "more"


@pytest.mark.parametrize(("likelihood", "value"), [("negative_binomial", 0.5), ("poisson", -1), ("bernoulli", 2)])
def test_values_that_are_no_counts_are_refused(likelihood, value):
    adata = lfm.datasets.simulate(30, 20, 1, likelihood=likelihood, mu=0, gene_scale=0.5)
    lfm.tl.fit(adata, 1, likelihood=likelihood, progress=False)
    values = adata.X.toarray()
    values[3, 4] = value
    adata.X = values
    before = adata.copy()
    with pytest.raises(ValueError, match=rf"'{likelihood}' is for .* 1 value.* in cell 'cell_3', gene 'gene_4'"):
        lfm.tl.anomalies(adata)
    assert set(adata.uns) == set(before.uns)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    np.testing.assert_array_equal(adata.X, before.X)


@pytest.mark.filterwarnings("ignore:The values of X are not on the scale that the fit read")
def test_a_count_changed_after_the_fit_spoils_no_other(planted):
    """It has not pulled the fit, so there is no pull to take out."""
    adata = planted.copy()
    values = adata.X.toarray()
    values[5, 70] = 2**24
    adata.X = values
    _, before, _ = listed(planted)
    with pytest.warns(UserWarning, match="not on the scale that the fit read"):
        _, after, _ = listed(adata)
    others = after[(after["cell"] != "cell_5") & (after["gene"] != "gene_70")]
    assert set(pairs(before)) - set(pairs(after)) <= {pair for pair in pairs(before) if pair[0] == "cell_5"}
    assert set(pairs(others)) <= set(pairs(before))
    assert after["expected"].max() < 100


@pytest.mark.parametrize(
    ("frame", "name", "row", "value"),
    [
        ("obs", "lfm_size_factor", "cell_3", np.nan),
        ("obs", "lfm_size_factor", "cell_3", 0.0),
        ("obs", "lfm_size_factor", "cell_3", np.inf),
        ("var", "lfm_theta", "gene_3", 0.0),
        ("var", "lfm_theta", "gene_3", np.nan),
    ],
)
def test_fields_that_were_changed_after_the_fit_are_named(planted, frame, name, row, value):
    adata = planted.copy()
    getattr(adata, frame).loc[row, name] = value
    what = row.split("_")[0]
    with pytest.raises(ValueError, match=rf"{frame}\['{name}'\] must be positive, found {value:g} in {what} '{row}'"):
        lfm.tl.anomalies(adata)
    assert "lfm_anomaly" not in adata.uns
