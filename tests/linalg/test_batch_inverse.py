"""Many small matrices at once against NumPy, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.linalg import batch_inverse
from scvi_lfm.linalg.batch_inverse import invert, pack_last, row_blocks, unpack_last
from scvi_lfm.linalg.packed import pack


def positive_definite(rows, k, seed=0, dtype=torch.float64):
    x = torch.randn(rows, k, 2 * k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrices = x @ x.mT / k + torch.eye(k)
    return ((matrices + matrices.mT) / 2).to(dtype)


def rows_moved_last(matrices):
    return matrices.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (3, 2), (5, 7), (40, 20)])
def test_triangles_there_and_back(rows, k):
    matrices = positive_definite(rows, k)
    last = unpack_last(pack(matrices), k)
    assert torch.equal(last, rows_moved_last(matrices))
    assert torch.equal(pack_last(last), pack(matrices))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (3, 2), (5, 7), (40, 20)])
def test_inverses_and_determinants(rows, k, dtype, tolerance):
    matrices = positive_definite(rows, k, dtype=dtype)
    exact = np.linalg.inv(matrices.double().numpy())
    inverse, pivots = invert(rows_moved_last(matrices))
    np.testing.assert_allclose(inverse.permute(2, 0, 1), exact, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        pivots.double().log().sum(0), np.linalg.slogdet(matrices.double().numpy())[1], rtol=tolerance, atol=tolerance
    )


def test_ill_conditioned_matrices_lose_no_more_than_cholesky_does():
    """Eigenvalues from 1 to 1e6, as of a cell of many counts."""
    basis = torch.linalg.qr(torch.randn(50, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    matrices = (basis * torch.logspace(0, 6, 8, dtype=torch.float64)) @ basis.mT
    exact = torch.linalg.inv(matrices)

    def worst(found):
        return float((found.double() - exact).abs().max())

    ours, _ = invert(rows_moved_last(matrices.float()))
    factored = torch.cholesky_inverse(torch.linalg.cholesky(matrices.float()))
    # both are off by about rounding times the condition; squaring the condition would cost a factor of 1e6
    assert worst(ours.permute(2, 0, 1)) < 10 * worst(factored)


@pytest.mark.parametrize("bad", [torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.full((2, 2), torch.nan)])
def test_what_is_not_positive_definite_is_refused(bad):
    matrices = torch.stack([torch.eye(2), bad], dim=-1)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
        invert(matrices)


def test_blocks_are_all_rows_once(monkeypatch):
    monkeypatch.setattr(batch_inverse, "VALUES_PER_BLOCK", 1000)
    monkeypatch.setattr(batch_inverse, "LEAST_ROWS", 3)
    for k, count in ((10, 3), (100, 9)):
        found = row_blocks(25, k, torch.device("cpu"))
        assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(25))
        assert len(found) == count


def test_few_large_blocks_off_the_cpu():
    """Each operation on a GPU has a cost of its own."""
    assert len(list(row_blocks(28_000, 31, torch.device("meta")))) == 1
    assert len(list(row_blocks(28_000, 31, torch.device("cpu")))) > 20
