"""Packed symmetric matrices against dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.linalg.packed import (
    congruent,
    diagonal,
    dimension,
    doubled,
    inner,
    off_first,
    outer,
    pack,
    packed_part,
    packed_size,
    unpack,
)

SHAPES = [(1,), (2,), (5,), (3, 1), (3, 5), (2, 3, 4)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(shape, seed=0):
    matrix = normal(*shape, shape[-1], seed=seed)
    return matrix + matrix.mT


@pytest.mark.parametrize("k", [1, 2, 3, 10, 51, 300])
def test_sizes(k):
    assert packed_size(k) == len(np.tril_indices(k)[0])
    assert dimension(packed_size(k)) == k


@pytest.mark.parametrize("shape", SHAPES)
def test_holds_the_lower_triangle_row_by_row(shape):
    matrix = symmetric(shape)
    rows, columns = np.tril_indices(shape[-1])
    np.testing.assert_array_equal(pack(matrix), matrix.numpy()[..., rows, columns])
    assert torch.equal(unpack(pack(matrix)), matrix)


@pytest.mark.parametrize("shape", SHAPES)
def test_diagonals(shape):
    matrix = symmetric(shape)
    assert torch.equal(diagonal(pack(matrix)), matrix.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("shape", SHAPES)
def test_outer_products(shape):
    x = normal(*shape)
    assert torch.equal(unpack(outer(x)), x[..., :, None] * x[..., None, :])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_doubled_dot_product_is_the_trace_of_a_product(shape):
    one, other = symmetric(shape), symmetric(shape, seed=1)
    found = (pack(one) * doubled(shape[-1], one) * pack(other)).sum(-1)
    torch.testing.assert_close(found, (one @ other).diagonal(dim1=-2, dim2=-1).sum(-1))
    assert doubled(3, one.float()).dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_off_first(shape):
    matrix = symmetric(shape)
    expected = matrix.clone()
    expected[..., 0, :] = expected[..., :, 0] = 0
    assert torch.equal(unpack(pack(matrix) * off_first(shape[-1], matrix)), expected)


@pytest.mark.parametrize("kept", [[], [0], [3], [0, 2, 3], [0, 1, 2, 3, 4]])
def test_parts(kept):
    matrix, kept = symmetric((2, 5)), torch.tensor(kept, dtype=torch.long)
    assert torch.equal(pack(matrix)[:, packed_part(kept)], pack(matrix[:, kept[:, None], kept]))
    assert torch.equal(inner(5, kept.device), packed_part(torch.arange(1, 5)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [-1, 0, 2])
def test_congruent(shape, more):
    k = shape[-1]
    linear, matrix = normal(max(k + more, 1), k), symmetric(shape)
    found = congruent(linear, pack(matrix))
    torch.testing.assert_close(unpack(found), linear @ matrix @ linear.T)
    assert congruent(linear, pack(matrix).float()).dtype == torch.float32


def test_takes_no_rows():
    assert unpack(torch.empty(0, 6)).shape == (0, 3, 3)
    assert pack(torch.empty(0, 3, 3)).shape == outer(torch.empty(0, 3)).shape == (0, 6)
    assert congruent(torch.eye(3), torch.empty(0, 6)).shape == (0, 6)
