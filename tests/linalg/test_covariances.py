"""The three forms of covariances answer every question as dense matrices do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_lfm.linalg import covariances
from scvi_lfm.linalg.covariances import (
    Common,
    Eigenbasis,
    Packed,
)

N, K = 11, 4
FORMS = ("Common", "Eigenbasis", "Packed")
ROWS = {
    "mask": torch.arange(N) % 3 == 1,
    "positions": torch.tensor([7, 0, 7, 10]),
    "slice": slice(3, 8),
    "none": torch.zeros(N, dtype=torch.bool),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(form, n=N, k=K, seed=0):
    factor = normal(n, k, k, seed=seed)
    if form == "Eigenbasis":
        return Eigenbasis(factor[0], factor[1, 0].square(), 0.5 + factor[:, -1, -1].abs())
    matrices = factor @ factor.mT + 0.1 * torch.eye(k, dtype=torch.float64)
    if form == "Common":
        return Common(matrices[0], n)
    rows, columns = np.tril_indices(k)
    return Packed(matrices[:, rows, columns])


def product(S, T):
    """tr(S_AA T_BB), entry by entry."""
    return torch.tensor([[float((s[1:, 1:] @ t[1:, 1:]).trace()) for t in T] for s in S], dtype=torch.float64)


@pytest.fixture(params=FORMS)
def cov(request, monkeypatch):
    """Covariances of each form, worked on in blocks of a few rows."""
    monkeypatch.setattr(covariances, "ROWS_PER_BLOCK", 4)
    return draw(request.param)


def test_diagonals(cov, dense):
    torch.testing.assert_close(cov.diagonals(), dense(cov).diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_at_some_rows(cov, dense, rows):
    part = cov.at(rows)
    assert type(part) is type(cov)
    torch.testing.assert_close(part.diagonals(), dense(cov).diagonal(dim1=1, dim2=2)[rows])
    torch.testing.assert_close(part.total(), dense(cov)[rows].sum(0))


def test_total(cov, dense):
    torch.testing.assert_close(cov.total(), dense(cov).sum(0))


def test_inner(cov, dense):
    matrix = normal(K, K, seed=1)
    matrix = matrix + matrix.T
    torch.testing.assert_close(cov.inner(matrix), torch.stack([(C @ matrix).trace() for C in dense(cov)]))


def test_quadratic_of_each_row_with_its_own_x(cov, dense):
    x = normal(N, K, seed=1)
    torch.testing.assert_close(cov.quadratic(x), torch.stack([y @ C @ y for y, C in zip(x, dense(cov), strict=True)]))


def quadratics(cov, x):
    coordinates = cov.coordinates()
    return cov.forms(x.to(coordinates.dtype)) @ coordinates.T


def test_quadratics_of_each_x_with_each_row(cov, dense):
    x = normal(5, K, seed=1)
    expected = torch.stack([torch.stack([y @ C @ y for C in dense(cov)]) for y in x])
    torch.testing.assert_close(quadratics(cov, x).expand(5, N), expected)


def test_moved(cov, dense):
    linear = normal(K, K, seed=1)
    moved = cov.moved(linear)
    assert type(moved) is type(cov)
    torch.testing.assert_close(dense(moved), torch.stack([linear @ C @ linear.T for C in dense(cov)]))


def test_spread_is_by_a_root(cov, dense):
    root = cov.spread(torch.eye(K, dtype=torch.float64)[:, None].expand(K, N, K)).movedim(0, 2)
    torch.testing.assert_close(root @ root.mT, dense(cov))
    noise = normal(3, N, K, seed=1)
    drawn = cov.spread(noise)
    torch.testing.assert_close(drawn, torch.einsum("ikl,sil->sik", root, noise))
    assert torch.equal(drawn[1:2], cov.spread(noise[1:2]))


def test_packed(cov, dense):
    rows, columns = np.tril_indices(K)
    lower = dense(cov)[:, rows, columns]
    torch.testing.assert_close(cov.packed().expand(lower.shape), lower)


def test_an_eigenbasis_under_another_noise(dense):
    cov, sigma = draw("Eigenbasis"), 0.2 + normal(N, seed=3).abs()
    other = cov.under(sigma)
    torch.testing.assert_close(other.diagonal, 1 / (cov.eig / sigma[:, None] ** 2 + 1))
    torch.testing.assert_close(other.total(), dense(replace(cov, sigma=sigma)).sum(0))


def test_float32_packed_with_float64_small_matrices(dense):
    cov = draw("Packed")
    single, matrix = Packed(cov.values.float()), normal(K, K, seed=1)
    matrix = matrix @ matrix.T
    assert single.total().dtype == torch.float64
    torch.testing.assert_close(single.total(), cov.total(), rtol=1e-6, atol=1e-6)
    assert single.inner(matrix).dtype == torch.float64
    torch.testing.assert_close(single.inner(matrix), cov.inner(matrix), rtol=1e-6, atol=1e-6)
    assert single.moved(matrix).values.dtype == torch.float32
    torch.testing.assert_close(dense(single.moved(matrix)).double(), dense(cov.moved(matrix)), rtol=1e-5, atol=1e-4)
    x = normal(N, K, seed=2)
    torch.testing.assert_close(single.quadratic(x).double(), cov.quadratic(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(quadratics(single, x).double(), quadratics(cov, x), rtol=1e-5, atol=1e-5)
    genes = draw("Eigenbasis", seed=5)
    found, expected = (genes.traces(cells.slopes()).double() @ genes.coordinates().T for cells in (single, cov))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of_genes", FORMS)
@pytest.mark.parametrize("of_cells", FORMS)
@pytest.mark.parametrize("k", [K, 1])
def test_traces_of_slopes(dense, of_cells, of_genes, k):
    cells, genes = draw(of_cells, k=k), draw(of_genes, n=7, k=k, seed=1)
    found = (genes.traces(cells.slopes()) @ genes.coordinates().T).expand(N, 7)
    torch.testing.assert_close(found, product(dense(cells), dense(genes)))


@pytest.mark.parametrize("of_genes", FORMS)
@pytest.mark.parametrize("of_cells", FORMS)
def test_slope_products_of_pairs(dense, of_cells, of_genes):
    cells, genes = draw(of_cells), draw(of_genes, seed=1)
    found = cells.slope_products_of_pairs(genes).expand(N)
    torch.testing.assert_close(found, product(dense(cells), dense(genes)).diagonal())


@pytest.mark.parametrize("form", ["Common", "Eigenbasis"])
def test_rows_in_one_basis_may_come_in_parts(form, dense):
    """As blocks of cells give them."""
    cov = draw(form)
    first, *others = (cov.at(part) for part in (slice(0, 4), slice(4, 5), slice(5, N)))
    whole = first.joined(others)
    assert type(whole) is type(cov)
    torch.testing.assert_close(dense(whole), dense(cov))
    torch.testing.assert_close(torch.logdet(cov.log_mean()), torch.logdet(dense(cov)).mean())


@pytest.mark.parametrize("form", ["Common", "Eigenbasis"])
def test_a_level_taken_off_noise_of_rows_leaves_the_covariances(form, dense):
    cov = draw(form)
    other, sigma, level = cov.without_level()
    torch.testing.assert_close(dense(other), dense(cov))
    if form == "Common":
        assert (sigma, level) == (None, 1)
    else:
        torch.testing.assert_close(level * sigma, cov.sigma)
        assert float(sigma.log().mean()) == pytest.approx(0, abs=1e-12)
