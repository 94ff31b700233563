"""Products of many rows by blocks: those of all rows at once, with the same bits for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm._workers import workers
from scvi_lfm.linalg.moments import one_first, row_moment
from scvi_lfm.linalg.rows import ROWS, row_parts, rows_times

CPU = torch.device("cpu")
SIZES = [0, 1, 511, 512, ROWS + 1, 3 * ROWS]


def normal(*shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(len(shape)).standard_normal(shape)).to(dtype)


@pytest.mark.parametrize("n", SIZES)
def test_parts_hold_every_row_once(n):
    parts = row_parts(n, CPU)
    assert [row for part in parts for row in range(n)[part]] == list(range(n))
    assert max(part.stop - part.start for part in parts) <= ROWS
    assert len(row_parts(n, torch.device("meta"))) == 1


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_all_rows(n, dtype):
    rows, linear, plus = normal(n, 5, dtype=dtype), normal(5, 3), normal(3)
    found = rows_times(rows, linear), rows_times(rows, linear, plus)
    exact = rows.double() @ linear
    # the precision rounds the matrix, and each of the terms of a sum
    bound = 7 * torch.finfo(dtype).eps * (rows.double().abs() @ linear.abs() + plus.abs())
    assert all(product.dtype == dtype for product in found)
    assert ((found[0].double() - exact).abs() <= bound).all()
    assert ((found[1].double() - exact - plus).abs() <= bound).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_all_rows(n, weighted):
    rows, weights = normal(n, 4), normal(n).square() if weighted else None
    with_one = one_first(rows)
    exact = with_one.T @ (with_one if weights is None else weights[:, None] * with_one)
    torch.testing.assert_close(row_moment(rows, weights), exact)


def test_workers_change_no_bit():
    rows, linear = normal(2 * ROWS + 7, 6), normal(6, 6)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with workers():
                found.append((rows_times(rows, linear), row_moment(rows)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))
