from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.stats import kstest

from scvi_lfm.data.holding_out import draw_entries


def test_a_matrix_beyond_memory_if_it_were_dense():
    n, m, k = 3_000_000, 2_000_000, 1000
    rng = np.random.default_rng(0)
    places = (rng.integers(n, size=k), rng.integers(m, size=k))
    values = sp.csr_matrix((np.ones(k, dtype=np.float32), places), shape=(n, m))
    mask, _ = draw_entries(sp.csr_array(values), 0.5, rng, stored=False)
    zeros = mask.tocoo()
    is_zero = np.asarray(values[zeros.row, zeros.col]).ravel() == 0
    assert 0 < is_zero.sum() == (~is_zero).sum()
    # drawn zeros are uniform over rows and columns
    assert kstest(zeros.row[is_zero] / n, "uniform").pvalue > 1e-4
    assert kstest(zeros.col[is_zero] / m, "uniform").pvalue > 1e-4
