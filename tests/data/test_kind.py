"""What kind of values a matrix holds, and whether other values are of the same kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from scvi_lfm.data import MemorySource, kind, read_matrix
from scvi_lfm.data.kind import ValueKind, log_base, other_kind, other_scale

N, M = 90, 130


def kind_of(values, **options):
    return kind.kind_of(MemorySource(values).summary, **options)


def looks_like(values, found):
    return kind.looks_like(MemorySource(values), found)


def counts(seed=0, n=N, m=M):
    """Counts with the spread of abundances of expression."""
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(rng.normal(-1, 2, m)) * rng.gamma(5, 0.2, (n, 1))).astype(np.float32)


def logs(seed=0):
    values = counts(seed) + 0.0
    return np.log1p(1e4 * values / values.sum(1, keepdims=True)).astype(np.float32)


def scaled(values):
    return sc.pp.scale(values.copy())


FORMS = {
    "dense": np.asarray,
    "by columns": np.asfortranarray,
    "sparse": sp.csr_array,
    "float64": lambda values: values.astype(np.float64),
    "not contiguous": lambda values: np.repeat(values, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [counts, logs, lambda: logs() - 1, lambda: logs() + 1, lambda: np.zeros((3, 4), "f4")])
@pytest.mark.parametrize("step", [50, 2**17])
def test_figures_are_those_of_the_dense_matrix(form, make, step, monkeypatch):
    monkeypatch.setattr("scvi_lfm.data.source.VALUES_PER_PART", step)
    values = make()
    found = kind_of(FORMS[form](values))
    present = values[values != 0].astype(float)
    assert found.minimum == values.min()
    assert found.maximum == values.max()
    assert found.mean_total == pytest.approx(values.sum(dtype=float) / len(values), rel=1e-6, abs=1e-9)
    assert found.n_present == len(present)
    assert found.mean_present == pytest.approx(present.mean() if len(present) else 0, rel=1e-6)
    assert found.whole == (np.mean(present == np.rint(present)) if len(present) else 1)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64])
def test_whole_dtypes(dtype):
    values = (counts() > 2 if dtype is bool else np.minimum(counts(), 100)).astype(dtype)
    for form in (np.asarray, sp.csr_array):
        found = kind_of(form(values))
        assert found.is_whole
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        assert found.mean_total == values.sum() / N


def test_zeros_that_are_not_stored_are_values_unless_stored_entries_alone_are():
    ratings = sp.csr_array(np.array([[0, 5, 3], [2, 0, 0]]))
    assert kind_of(ratings).minimum == 0
    assert kind_of(ratings, stored_only=True).minimum == 2
    assert kind_of(-1 * ratings).maximum == 0
    assert kind_of(-1 * ratings, stored_only=True).maximum == -2
    assert kind_of(sp.csr_array((2, 3)), stored_only=True) == kind_of(np.zeros((2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_extremes(bad, monkeypatch):
    monkeypatch.setattr("scvi_lfm.data.source.VALUES_PER_PART", 50)
    values = logs()
    values[7, 3] = bad
    for form in (np.asarray, sp.csr_array):
        found = kind_of(form(values))
        assert not (np.isfinite(found.minimum) and np.isfinite(found.maximum))


def test_the_gate_keeps_the_kind_of_the_genes_it_read(pbmc_lognorm):
    genes = np.arange(pbmc_lognorm.n_vars) % 3 == 0
    matrix = read_matrix(pbmc_lognorm, genes=genes)
    assert matrix.kind == kind_of(pbmc_lognorm.X[:, genes])
    assert matrix.at_genes(np.arange(5)).kind is None


# what values look like


@pytest.mark.parametrize("target", [1, 100, 1e4, 1e6, None])
@pytest.mark.parametrize("base", [None, 2, 10])
def test_logs_of_real_counts_look_like_logs(pbmc_counts, target, base):
    adata = sc.pp.normalize_total(pbmc_counts, target_sum=target, copy=True)
    sc.pp.log1p(adata, base=base)
    kind = kind_of(adata.X)
    assert looks_like(adata.X, kind) is None
    assert log_base(adata.uns, kind) == (math.e if base is None else base)


@pytest.fixture(scope="module")
def pbmc_counts():
    import scvi_lfm as lfm

    adata = lfm.datasets.pbmc_sorted()
    adata.X = adata.X.astype(np.float32)
    return adata


def by_total(target):
    return lambda adata: sc.pp.normalize_total(adata, target_sum=target, copy=True).X


def shares(adata):
    """A cell without a count is no share of anything."""
    values = by_total(1)(adata)
    values[3] *= 0
    return values


def expected_counts(adata):
    """A fifth of the molecules are shared between genes, as by RSEM."""
    values = adata.X.copy()
    values.data[::5] *= 0.7
    return values


UNLOGGED = {
    "1e4": by_total(1e4),
    "1e6": by_total(1e6),
    "median": by_total(None),
    "corrected": lambda adata: adata.X * np.float32(0.9),
    "expected": expected_counts,
    "abundant genes": lambda adata: by_total(1e4)(adata)[:, np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:50]],
}


@pytest.mark.parametrize("name", UNLOGGED)
def test_real_counts_without_logs_look_unlogged(pbmc_counts, name):
    values = UNLOGGED[name](pbmc_counts)
    kind = kind_of(values)
    assert looks_like(values, kind) == "unlogged"
    assert log_base({"log1p": {"base": None}}, kind) is None


def test_shares_of_a_cell_look_unlogged(pbmc_counts):
    values = shares(pbmc_counts)
    assert looks_like(values, kind_of(values)) == "unlogged"
    # of some genes they add up to something else in each cell
    some = values[:, ::3]
    assert looks_like(some, kind_of(some)) == "unlogged"
    logged = MemorySource(some.log1p() if sp.issparse(some) else np.log1p(some))
    assert not kind.in_units_of_cells(logged)
    assert kind.in_units_of_cells(logged, np.expm1)
    around = 1e6 + np.random.default_rng(0).normal(size=(60, 40))
    assert looks_like(around, kind_of(around)) is None


@pytest.mark.parametrize("options", [{}, {"max_value": 10}, {"zero_center": False}], ids=str)
@pytest.mark.filterwarnings("ignore:zero-centering a sparse")
def test_scaled_genes_look_scaled(pbmc_lognorm, options):
    adata = pbmc_lognorm[:300].copy()
    sc.pp.scale(adata, **options)
    assert looks_like(adata.X, kind_of(adata.X)) == "scaled"


def residuals():
    """Analytic Pearson residuals of counts."""
    values = counts(n=400).astype(float) + 1e-9
    expected = np.outer(values.sum(1), values.sum(0)) / values.sum()
    return (values - expected) / np.sqrt(expected + expected**2 / 100)


RNG = np.random.default_rng(0)
OTHERS = {
    "residuals": residuals(),
    "noise with unit variance": RNG.normal(size=(60, 20)),
    "level of a thousand": RNG.normal(1000, 1, (60, 20)),
    "level of minus a million": RNG.normal(-1e6, 10, (60, 20)),
    "tiny": RNG.normal(1e-6, 1e-7, (60, 20)),
    "percentages": 100 * RNG.beta(0.3, 0.3, (60, 20)),
    "half stars": RNG.integers(1, 11, (60, 20)) / 2,
    "proteins": np.log1p(RNG.gamma(1, 1, (60, 20)) / np.exp(np.log1p(RNG.gamma(1, 1, (60, 20))).mean(0))),
    "square roots": np.sqrt(counts()),
    "logs": logs(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_look_like_nothing_wrong(name):
    for form in (np.asarray, sp.csr_array):
        values = form(OTHERS[name].astype(np.float32))
        assert looks_like(values, kind_of(values)) is None


@pytest.mark.parametrize(
    ("uns", "base"),
    [
        ({}, math.e),
        ({"log1p": {}}, math.e),
        ({"log1p": {"base": None}}, math.e),
        ({"log1p": {"base": 2}}, 2),
        ({"log1p": {"base": np.float64(10)}}, 10),
        ({"log1p": {"base": np.array(2)[()]}}, 2),
        ({"log1p": {"base": "two"}}, math.e),
        ({"log1p": {"base": 1}}, math.e),
        ({"log1p": 2}, math.e),
    ],
)
def test_the_base_of_logs_is_what_scanpy_noted(uns, base):
    assert log_base(uns, kind_of(logs())) == base


# comparisons


KINDS = {
    "counts": counts,
    "logs": logs,
    "unlogged": lambda seed=0: (counts(seed) * 1e4 / counts(seed).sum(1, keepdims=True)).astype(np.float32),
    "scaled": lambda seed=0: scaled(logs(seed)),
    "level": lambda seed=0: np.random.default_rng(seed).normal(4, 1, (N, M)),
    "expected": lambda seed=0: np.where(np.random.default_rng(seed).random((N, M)) < 0.3, 0.7, 1) * counts(seed),
}
OTHER_KIND = {
    ("logs", "counts"): "whole numbers",
    ("logs", "scaled"): "values that are negative",
    ("unlogged", "counts"): "whole numbers",
    ("unlogged", "scaled"): "values that are negative",
    ("counts", "logs"): "values that are not whole numbers",
    ("counts", "unlogged"): "values that are not whole numbers",
    ("counts", "scaled"): "values that are negative",
    ("counts", "level"): "values that are not whole numbers",
    ("scaled", "counts"): "no negative value",
    ("scaled", "logs"): "no negative value",
    ("scaled", "unlogged"): "no negative value",
    ("scaled", "expected"): "no negative value",
    ("expected", "scaled"): "values that are negative",
    ("level", "counts"): "whole numbers",
    ("level", "scaled"): "values that are negative",
}


@pytest.mark.parametrize("read", KINDS)
@pytest.mark.parametrize("fitted", KINDS)
def test_kinds_differ_where_they_do(fitted, read):
    fit = ValueKind.of_record(kind_of(KINDS[fitted]()).record())
    difference = other_kind(kind_of(KINDS[read](1)), fit)
    assert (difference and difference[0]) == OTHER_KIND.get((fitted, read))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_no_part_of_the_values_is_of_another_kind(name, form):
    values = KINDS[name]()
    fit = kind_of(values)
    rng = np.random.default_rng(1)
    for _ in range(200):
        cells = rng.choice(N, rng.integers(1, 1 + rng.choice([3, N])), replace=False)
        genes = rng.choice(M, rng.integers(1, 1 + rng.choice([3, M])), replace=False)
        part = values[np.ix_(cells, genes)]
        found = kind_of(form(part))
        assert other_kind(found, fit) is None
        if values.min() >= 0:
            assert other_scale(found, fit, part.mean(0)) is None


def test_a_few_ratings_are_ratings():
    fit = kind_of(np.array([[0.5, 1, 2.5], [3, 4.5, 5]]))
    for row in ([5, 4, 4], [1, 1, 1], [3.5, 4.25, 2]):
        assert other_kind(kind_of(np.array([row * 10])), fit, ratings=True) is None
        assert other_scale(kind_of(np.array([row * 10])), fit, np.full(130, 3.0), ratings=True) is None
    signed = kind_of(np.array([[-9.9, 3.2], [4.1, 0.3]]))
    assert other_kind(kind_of(np.array([[0.0, 3.2, 5.1] * 50])), signed, ratings=True) is None
    assert other_kind(kind_of(np.array([[-2, 1, 2]])), fit, ratings=True)[0] == "values that are negative"
    assert "largest is 100" in other_scale(kind_of(np.array([[100, 60]])), fit, np.full(130, 3.0), ratings=True)


def test_values_on_a_level_may_fall_below_zero():
    rng = np.random.default_rng(0)
    fit = kind_of(rng.normal(4, 1, (50, 40)))
    assert fit.minimum > 0
    found = kind_of(rng.normal(4, 1, (5000, 200)))
    assert found.minimum < 0
    assert other_kind(found, fit) is None


def test_scales_that_differ_threefold():
    values = logs()
    fit, expected = kind_of(values), values.mean(0)
    for times in (0.5, 2.0):
        assert other_scale(kind_of(times * values), fit, expected) is None
    assert "where the fit read no more than" in other_scale(kind_of(3.1 * values), fit, expected)
    few = np.where(np.random.default_rng(0).random(values.shape) < 0.2, values, 0)
    assert "add up to" in other_scale(kind_of(few), fit, expected)
    low = np.where(values > 0, 0.1 * values.max() * values / values.max(), 0)
    assert "expects a mean of" in other_scale(kind_of(low), fit, expected)
    # one value of counts may be a burst, but they all can not
    drawn = counts()
    burst = drawn.copy()
    burst[3, 4] = 10 * drawn.max()
    assert other_scale(kind_of(burst), kind_of(drawn), drawn.mean(0), counts=True) is None
    assert "add up to" in other_scale(kind_of(4 * drawn), kind_of(drawn), drawn.mean(0), counts=True)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_no_value_where_many_are_expected(form):
    """Of a few cells of which little is expected, all may well be zero."""
    values = logs()
    fit, nothing = kind_of(values), np.zeros_like(values)
    assert "expects a mean of" in other_scale(kind_of(form(nothing)), fit, values.mean(0))
    drawn = counts()
    assert "add up to 0" in other_scale(kind_of(form(nothing)), kind_of(drawn), drawn.mean(0), counts=True)
    little = drawn.mean(0) / drawn.sum(1).mean()
    assert other_scale(kind_of(form(nothing[:50])), kind_of(drawn), little, counts=True) is None


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_whole_numbers_closer_than_counts_can_be(dtype):
    noise = np.random.default_rng(0).normal(0, 10, (60, 20)).round()
    for level in (1e5, 1e6, 1e7):
        assert not kind_of((noise + level).astype(dtype)).may_be_counts
    assert not kind_of((noise - 1e6).astype(dtype)).may_be_counts
    assert kind_of((noise - noise.min()).astype(dtype)).may_be_counts
    for mean in (1, 101, 1e3, 1e6):
        for seed in range(20):
            assert kind_of(np.random.default_rng(seed).poisson(mean, (5, 4)).astype(dtype)).may_be_counts


def test_shares_are_no_logs():
    values = counts()
    part = (values / values.sum(1, keepdims=True)).astype(np.float32)
    assert kind.looks_logged(kind_of(part))
    assert not kind.looks_logged(kind_of(part), part.sum(1))
    assert kind.looks_logged(kind_of(logs()), logs().sum(1))


@pytest.mark.usefixtures("parts")
def test_expression_is_told_from_ratings_by_the_least_value_of_each_cell(source_of):
    least_and_others = [1.0] * 6 + [2.0, 3, 4, 5]
    few = [0.5] + [0.0] * 9  # a cell with too few values to tell, between others
    expression = sp.csr_array(np.array([least_and_others, few, few, least_and_others, few, [7.0] * 9 + [8.0]]))
    assert kind.looks_like_expression(source_of(expression))
    ratings = np.array([[1.0, 2, 2, 3, 3, 4, 4, 5, 5, 5]] * 3)
    assert not kind.looks_like_expression(source_of(sp.csr_array(ratings)))
    assert not kind.looks_like_expression(source_of(sp.csr_array(np.array([few] * 4))))
    assert not kind.looks_like_expression(source_of(expression.toarray()))
    assert not kind.looks_like_expression(source_of(-expression))
