"""Values in memory are shared with whoever reads them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_lfm.data import MemorySource
from scvi_lfm.data.summary import stored_values


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array, sp.csr_matrix])
@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), slice(90, 200)], ids=str)
def test_consecutive_cells_are_no_copy(form, rows):
    values = form(np.arange(1.0, 401).reshape(100, 4))
    block = MemorySource(values).rows(rows)
    assert type(block) is type(values)
    assert np.shares_memory(stored_values(block), stored_values(values))
    if sp.issparse(block):
        assert np.shares_memory(block.indices, values.indices)
        block.check_format(full_check=True)
        assert (block != values[rows]).nnz == 0
    else:
        np.testing.assert_array_equal(block, values[rows])


def test_a_pattern_shares_its_indices():
    values = sp.csr_array(np.eye(5))
    assert np.shares_memory(MemorySource(values).pattern().indices, values.indices)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_values_are_left_as_they_were(form):
    values = form(np.eye(5))
    rest = MemorySource(values).without(sp.csr_array(np.eye(5, dtype=bool)))
    assert rest.summary.total == 0
    assert values.sum() == 5
