"""Epochs on variable genes alone: the same model at the end, whatever the order of genes and the number of threads."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm
from log_rate_means import eta
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.counts import engine, variable
from scvi_lfm.inference.counts.groups import Groups
from scvi_lfm.inference.counts.objective import EntrySample
from scvi_lfm.inference.counts.state import Cells
from scvi_lfm.linalg.packed import outer, pack

LEAST = 60


@pytest.fixture(scope="module")
def counts():
    """Most genes are rare: 300 of which some 60 hold nine tenths of what is told."""
    return lfm.datasets.simulate(400, 300, 3, likelihood="negative_binomial", mu=-2.5, rng=4)


@pytest.fixture
def leaves_out(monkeypatch):
    monkeypatch.setattr(variable, "SHARE", 0.9)
    monkeypatch.setattr(variable, "LEAST_CELLS", 1)
    monkeypatch.setattr(variable, "LEAST", LEAST)


def fitted(counts, **arguments):
    adata = counts.copy()
    lfm.tl.fit(adata, 3, batch_size=200, progress=False, **arguments)
    return adata


def test_variable_genes_tell_most():
    """Not those that are seen most: counts of a third of the genes vary no more than a Poisson's."""
    rng = np.random.default_rng(0)
    n, m = variable.LEAST_CELLS, 6000
    log_size = rng.normal(0, 0.3, n)
    rate = np.exp(log_size)[:, None] * np.tile([2.0, 1.0, 0.002], m // 3)
    rate[:, 1::3] *= rng.gamma(1, 1, (n, 1))
    y = rng.poisson(rate).astype(np.float32)
    found = variable.variable_genes(CellMatrix.of(sp.csr_array(y)), log_size)
    np.testing.assert_array_equal(found, variable.variable_genes(CellMatrix.of(y), log_size))
    assert set(range(1, m, 3)) <= set(found)
    assert len(found) < m / 2


def test_what_a_gene_tells_is_its_excess_variance():
    """By entries, at the rates and dispersions that counts were drawn with: sum of w phi."""
    rng = np.random.default_rng(1)
    size, rate, phi = rng.lognormal(0, 0.3, 20_000), np.array([0.5, 1.0, 5.0]), np.array([0.5, 1.0, 0.2])
    mean = size[:, None] * rate
    y = rng.poisson(mean * rng.gamma(1 / phi, phi, mean.shape))
    expected = (phi * mean / (1 + phi * mean)).sum(0)
    # dispersions by moments have a standard error of 5 % at the most; that sizes differ takes a few per cent
    np.testing.assert_allclose(variable._told(y, size), expected, rtol=0.15)


def test_of_binary_values_those_tell_most_that_are_seen_most():
    y = np.random.default_rng(2).random((500, 40)) < np.linspace(0.02, 0.5, 40)
    np.testing.assert_array_equal(np.argsort(variable._told(y.astype(np.float32), np.ones(500))), np.argsort(y.sum(0)))


def test_no_count_tells_more_than_all_cells_could():
    """A gene tells at most one for each cell; of the dispersion of an odd count, not all is believed."""
    y = np.random.default_rng(3).poisson(0.1, (1000, 2)).astype(np.float32)
    y[0, 0], y[0, 1] = 1e6, 20
    odd, large = variable._told(y, np.ones(1000))
    assert 900 < odd < 1000
    # of 120 molecules, at a dispersion of 3
    assert large < 3 * y[:, 1].sum()


def test_all_genes_are_seen_where_all_are_variable(counts):
    y = sp.vstack([sp.csr_array(counts.X)] * 3, format="csr")
    assert variable.variable_genes(CellMatrix.of(y), np.zeros(y.shape[0])) is None


def test_few_cells_see_all_genes():
    y = np.ones((variable.LEAST_CELLS, 4000), dtype=np.float32)
    y[1:, ::2] = 0
    nothing = np.zeros(len(y))
    assert variable.variable_genes(CellMatrix.of(y), nothing) is not None
    assert variable.variable_genes(CellMatrix.of(y[1:]), nothing[1:]) is None


@pytest.mark.parametrize(
    "likelihood",
    ["negative_binomial", *(pytest.param(name, marks=pytest.mark.slow) for name in ("poisson", "bernoulli"))],
)
def test_genes_that_are_left_out_end_where_they_would(counts, leaves_out, monkeypatch, likelihood):
    data = counts.copy()
    if likelihood == "bernoulli":
        data.X = (data.X > 0).astype(np.float32)
    some = fitted(data, likelihood=likelihood, tol=1e-3)
    monkeypatch.setattr(variable, "LEAST", data.n_vars)
    whole = fitted(data, likelihood=likelihood, tol=1e-3)
    elbo, gain = some.uns["lfm"]["elbo"], whole.uns["lfm"]["elbo"]["value"][-1] - whole.uns["lfm"]["elbo"]["rank0"]
    assert elbo["rank0"] == whole.uns["lfm"]["elbo"]["rank0"]
    # 0.1 to 2.4 % of the gain, as likelihoods differ
    assert abs(elbo["value"][-1] - whole.uns["lfm"]["elbo"]["value"][-1]) < 0.1 * gain
    assert np.corrcoef(eta(some).ravel(), eta(whole).ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_the_trace_is_of_all_entries(counts, leaves_out, monkeypatch):
    elbo = fitted(counts).uns["lfm"]["elbo"]
    monkeypatch.setattr(variable, "LEAST", counts.n_vars)
    whole = fitted(counts).uns["lfm"]["elbo"]
    assert elbo["rank0"] == whole["rank0"] < elbo["value"][0]
    # what the others gain comes at the end, and is little
    assert abs(elbo["value"][0] - whole["value"][0]) < 0.2 * (whole["value"][0] - whole["rank0"])


@pytest.mark.slow
def test_the_order_of_genes_does_not_matter(counts, leaves_out):
    order = np.random.default_rng(0).permutation(counts.n_vars)
    first, second = fitted(counts), fitted(counts[:, order].copy())
    # other random entries tell when to stop, so that fits may end an epoch apart
    assert np.corrcoef(eta(first)[:, order].ravel(), eta(second).ravel())[0, 1] > 0.99
    np.testing.assert_allclose(first.var["lfm_b"].to_numpy()[order], second.var["lfm_b"], atol=0.2)


@pytest.mark.slow
def test_the_number_of_threads_does_not_matter(counts, leaves_out):
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(fitted(counts, max_epochs=2))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0].obsm["X_lfm"], found[1].obsm["X_lfm"])
    np.testing.assert_array_equal(found[0].varm["lfm_cov"], found[1].varm["lfm_cov"])


@pytest.mark.parametrize("arguments", [{"held_out": "mask"}, {"observed": "stored"}, {"likelihood": "ordinal"}])
def test_where_entries_are_no_data_all_genes_are_seen(leaves_out, monkeypatch, arguments):
    counts = lfm.datasets.simulate(60, 40, 2, likelihood="negative_binomial", mu=0, rng=4)
    data = counts.copy()
    data.X = sp.csr_matrix(np.minimum(data.X.toarray(), 4))
    data.layers["mask"] = sp.csr_matrix(([True], ([3], [5])), shape=data.shape)
    asked = []
    monkeypatch.setattr(engine, "variable_genes", lambda matrix, _: asked.append(matrix))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted(data, **arguments, max_epochs=1)
        assert asked == []
        fitted(counts, max_epochs=1)
    assert len(asked) == 1


def test_groups_have_the_rates_of_their_cells():
    """Exactly, for genes that no factor moves; nearly, for those that factors move little."""
    rng = np.random.default_rng(1)
    mean = torch.from_numpy(rng.normal(size=(640, 3))).float()
    cov = pack(torch.eye(3) * 0.02).repeat(640, 1)
    cells = Cells(mean, cov, torch.from_numpy(rng.normal(size=640)).float() / 3)
    groups = Groups.of(cells)
    sizes = np.bincount(groups.of_cell)
    assert groups.count == 64
    assert sizes.min() == sizes.max() == 10

    def rates(of, loading):
        v = torch.tensor([1.0, loading, -loading])
        return torch.exp(of.log_size + of.mean @ v + 0.5 * (of.cov * doubled(outer(v[None]))).sum(1)).numpy()

    def doubled(packed):
        return packed * torch.tensor([1.0, 2, 1, 2, 2, 1])

    total = np.bincount(groups.of_cell, weights=rates(cells, 0.0))
    np.testing.assert_allclose(rates(groups.cells, 0.0), total, rtol=1e-5)
    total = np.bincount(groups.of_cell, weights=rates(cells, 0.3))
    np.testing.assert_allclose(rates(groups.cells, 0.3), total, rtol=0.02)


def test_groups_sum_counts():
    rng = np.random.default_rng(2)
    y = rng.poisson(1.0, size=(100, 7)).astype(np.float32)
    groups = Groups.of(
        Cells(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(100, 3), torch.zeros(100))
    )
    expected = np.zeros((groups.count, 7))
    np.add.at(expected, groups.of_cell, y)
    for values in (y, sp.csr_array(y)):
        np.testing.assert_array_equal(groups.sums(CellMatrix.of(values)), expected)


def test_a_sample_of_some_genes_stands_for_their_entries():
    y = np.random.default_rng(3).poisson(0.7, size=(200, 40)).astype(np.float32)
    sample = EntrySample.draw(CellMatrix.of(sp.csr_array(y)), torch.device("cpu"), np.random.default_rng(0))
    genes = torch.tensor([1, 5, 30, 31])
    some = sample.at_genes(genes, 40)
    assert some.n_entries == 800
    assert float(some.weight.sum()) == pytest.approx(1)
    np.testing.assert_array_equal(some.y.numpy(), y[some.cell, genes[some.gene]])
    # some thousand entries: within four standard errors of the mean of their values
    error = float(y.std()) / len(some.y) ** 0.5
    assert float(some.y.double() @ some.weight) == pytest.approx(float(y[:, genes].mean()), abs=4 * error)
