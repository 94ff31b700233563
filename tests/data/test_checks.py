"""Errors about values name the first of those that are wrong, in whichever part of the source it lies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_lfm.data.checks import check_counts, check_finite, check_positions
from scvi_lfm.data.opening import source_of as opened

CELLS, GENES = (pd.Index([f"{axis}_{k}" for k in range(12)]) for axis in ("cell", "gene"))
WORDS = {"asked": "by='molecules'", "otherwise": "by='entries'"}


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(1.5, (12, 12)).astype(np.float32)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("value", "maximum", "words"),
    [
        (0.5, None, "not whole numbers; the first is 0.5"),
        (-3, None, "negative; the first is -3"),
        (2**25, None, "above 2^24, beyond which float32 skips whole numbers; the first is 33554432"),
        (40, 30, "above 30; the first is 40"),
    ],
)
@pytest.mark.half_slow
def test_counts_that_are_none(source_of, form, counts, value, maximum, words):
    check_counts(source_of(form(counts)), "X", CELLS, GENES, maximum=maximum, **WORDS)
    counts[8, 5] = counts[10, 1] = value
    source = source_of(form(counts))
    share = 2 / source.n_stored
    with pytest.raises(ValueError, match="is for counts, but X holds 2 value") as error:
        check_counts(source, "X", CELLS, GENES, maximum=maximum, **WORDS)
    assert f"({share:.1%} of those stored) that are {words}" in str(error.value)
    assert "in cell 'cell_8', gene 'gene_5'" in str(error.value)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e39])
def test_values_that_are_not_finite(source_of, bad):
    values = np.random.default_rng(0).normal(size=(12, 12))
    check_finite(source_of(values), "X", CELLS, GENES)
    values[9, 3] = values[11, 0] = bad
    with pytest.raises(ValueError, match=r"X holds 2 value\(s\) .*in cell 'cell_9', gene 'gene_3'") as error:
        check_finite(source_of(values), "X", CELLS, GENES)
    assert ("observed='stored'" in str(error.value)) == np.isnan(bad)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_array])
@pytest.mark.parametrize("damage", ["indices beyond", "indices negative", "rows backwards"])
def test_matrices_that_name_what_they_do_not_have(counts, kind, damage):
    """scipy takes them, and its products read or write beyond the end of an array."""
    matrix = kind(counts)
    check_positions(matrix, "X")
    if damage == "rows backwards":
        matrix.indptr[4] = 0
    else:
        matrix.indices[3] = 600 if damage == "indices beyond" else -1
    before = [part.copy() for part in (matrix.data, matrix.indices, matrix.indptr)]
    with pytest.raises(ValueError, match=r"layers\['counts'\] is a sparse matrix of 12 x 12 that is damaged \("):
        opened(matrix, "layers['counts']")
    for part, same in zip((matrix.data, matrix.indices, matrix.indptr), before, strict=True):
        np.testing.assert_array_equal(part, same)
