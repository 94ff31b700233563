"""The gate: any form of matrix, read as it is, and left as it was."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scvi_lfm.data import Scaled, read_matrix

CPU = torch.device("cpu")
REAL = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", ">f4", ">f8", ">i4"]
SPARSE = [sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array]


@dataclass(frozen=True)
class Case:
    """A matrix in some form, and its values."""

    adata: ad.AnnData
    layer: str | None
    expected: np.ndarray


def named(values, layer=None):
    n, m = values.shape
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"gene_{j}" for j in range(m)])
    if layer is None:
        return ad.AnnData(values, obs=obs, var=var)
    return ad.AnnData(obs=obs, var=var, layers={layer: values})


def scrambled(matrix, rng):
    """The same matrix with its stored entries in any order and some of them split in two."""
    major, minor = matrix.nonzero() if matrix.format == "csr" else matrix.T.tocsr().nonzero()
    length = matrix.shape[0] if matrix.format == "csr" else matrix.shape[1]
    dense = matrix.toarray() if matrix.format == "csr" else matrix.toarray().T
    entries = []
    for i, j in zip(major, minor, strict=True):
        value = dense[i, j]
        split = value // 2 if matrix.dtype != bool and rng.random() < 0.5 else None
        entries += [(i, j, value)] if split is None else [(i, j, split), (i, j, value - split)]
    entries = [entries[k] for k in rng.permutation(len(entries))]
    entries.sort(key=lambda entry: entry[0])
    indptr = np.searchsorted([entry[0] for entry in entries], np.arange(length + 1))
    data = np.array([entry[2] for entry in entries], dtype=matrix.dtype)
    indices = np.array([entry[1] for entry in entries], dtype=matrix.indices.dtype)
    return type(matrix)((data, indices, indptr.astype(matrix.indices.dtype)), shape=matrix.shape)


@st.composite
def cases(draw, *, sparse=None, dtypes=REAL):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    low = 0 if dtype.kind in "bu" else -60
    values = draw(arrays(np.int64, shape, elements=st.integers(low, 60), fill=st.just(0)))
    values = (values / 4 if dtype.kind == "f" else values).astype(dtype)
    form = draw(st.sampled_from(SPARSE if sparse else [*SPARSE, "C", "F"]))
    if form in ("C", "F"):
        matrix = np.array(values, order=form)
    else:
        matrix = form(values.astype(dtype.newbyteorder("=")))
        index_dtype = draw(st.sampled_from([np.int32, np.int64]))
        matrix.indices, matrix.indptr = matrix.indices.astype(index_dtype), matrix.indptr.astype(index_dtype)
        if draw(st.booleans()):
            matrix = scrambled(matrix, np.random.default_rng(draw(st.integers(0, 99))))
    layer = draw(st.sampled_from([None, "counts"]))
    adata, expected = named(matrix, layer), values.astype(np.float64)
    if draw(st.booleans()):
        rows = draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, unique=True))
        columns = draw(st.lists(st.integers(0, shape[1] - 1), min_size=1, unique=True))
        adata, expected = adata[rows, columns], expected[np.ix_(rows, columns)]
    return Case(adata, layer, expected)


def held(adata, layer):
    return adata.X if layer is None else adata.layers[layer]


def fingerprint(values):
    """All that a reader could have altered."""
    parts = (values.data, values.indices, values.indptr) if sp.issparse(values) else (values,)
    return type(values), values.shape, values.dtype.str, [(part.dtype.str, part.tobytes()) for part in parts]


# several fields of one AnnData are drawn at once
thorough = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(cases())
def test_values_are_read_in_any_form(case):
    matrix = read_matrix(case.adata, case.layer)
    held_values = matrix.stored()
    assert matrix.shape == case.expected.shape
    if sp.issparse(held(case.adata, case.layer)):
        assert sp.issparse(held_values)
        assert held_values.format == "csr"
        assert held_values.has_canonical_format
        indices = [
            held_values.indices[start:stop]
            for start, stop in zip(held_values.indptr[:-1], held_values.indptr[1:], strict=True)
        ]
        assert all((np.diff(row) > 0).all() for row in indices)
        held_values = held_values.toarray()
    else:
        assert type(held_values) is np.ndarray
    np.testing.assert_array_equal(held_values.astype(np.float64), case.expected)


@thorough
@given(cases(), st.data())
def test_the_anndata_is_left_as_it_was(case, data):
    values = held(case.adata, case.layer)
    before, attributes = fingerprint(values), set(vars(values)) if sp.issparse(values) else set()
    m = case.adata.n_vars
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=m, max_size=m).filter(any)))
    matrix = read_matrix(case.adata, case.layer, genes=mask)
    for dtype in (torch.float32, torch.float64):
        batch = matrix.batch(None, CPU, dtype)
        batch.times_genes(Scaled(torch.ones(int(mask.sum()), 1, dtype=torch.float64)))
        batch.times_cells(torch.ones(case.adata.n_obs, 1, dtype=torch.float64))
        assert batch.square_sums.shape == (mask.sum(),)
    assert fingerprint(values) == before
    if attributes:
        assert set(vars(values)) == attributes
    assert fingerprint(held(case.adata, case.layer)) == before


@thorough
@given(cases(), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_products_are_numpys(case, dtype, data):
    n, m = case.expected.shape
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=m, max_size=m).filter(any)))
    rows = data.draw(st.one_of(st.none(), st.lists(st.integers(0, n - 1), min_size=1, unique=True).map(sorted)))
    expected = case.expected[:, mask] if rows is None else case.expected[np.ix_(rows, mask)]
    batch = read_matrix(case.adata, case.layer, genes=mask).batch(None if rows is None else np.array(rows), CPU, dtype)
    rng = np.random.default_rng(0)
    per_gene, per_cell = rng.normal(size=(mask.sum(), 2)), rng.normal(size=(len(expected), 2))
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-4}
    assert batch.n_cells == len(expected)
    np.testing.assert_allclose(batch.times_genes(Scaled(torch.from_numpy(per_gene))), expected @ per_gene, **close)
    np.testing.assert_allclose(batch.times_cells(torch.from_numpy(per_cell)), expected.T @ per_cell, **close)
    np.testing.assert_allclose(batch.square_sums, (expected**2).sum(0), **close)
    np.testing.assert_array_equal(batch.dense().double(), expected)
    assert batch.square_sums.dtype == torch.float64


@pytest.mark.parametrize("form", [np.ascontiguousarray, np.asfortranarray])
def test_half_precision_is_read(form):
    values = form(np.array([[0, 0.5], [-2, 6e4]], dtype=np.float16))
    batch = read_matrix(named(values)).batch(None, CPU)
    np.testing.assert_array_equal(batch.dense(), values.astype(np.float32))


@pytest.mark.parametrize("form", SPARSE)
def test_a_matrix_too_large_to_be_dense_is_read(form):
    shape = (200_000, 100_000)
    matrix = form(sp.coo_array((np.ones(3, dtype=np.float32), ([0, 7, 199_999], [5, 99_999, 0])), shape=shape))
    adata = ad.AnnData(matrix)
    block = read_matrix(adata).batch(None, CPU)
    genes = torch.zeros(shape[1], 1, dtype=torch.float64)
    genes[99_999] = 2
    assert float(block.times_genes(Scaled(genes))[7]) == 2
    assert float(block.square_sums.sum()) == 3


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, np.ascontiguousarray])
def test_memory_is_shared_where_it_can_be(form):
    adata = named(form(np.eye(4, dtype=np.float32)))
    values = read_matrix(adata).stored()
    theirs, ours = (adata.X.data, values.data) if sp.issparse(values) else (adata.X, values)
    assert np.shares_memory(theirs, ours)


def test_a_mask_keeps_what_it_names_and_nothing_else_is_checked():
    values = np.arange(12.0).reshape(3, 4)
    values[1, 2] = np.nan
    mask = np.array([True, False, False, True])
    np.testing.assert_array_equal(read_matrix(named(values), genes=mask).stored(), values[:, mask])
    with pytest.raises(ValueError, match="NaN"):
        read_matrix(named(values), genes=~mask)


@pytest.mark.parametrize("form", [*SPARSE, np.asarray, np.asfortranarray])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_no_fit_can_use_are_counted_and_located(form, bad):
    values = np.zeros((4, 3))
    values[2, 1] = values[3, 0] = bad
    values[0, 2] = 1
    with pytest.raises(ValueError, match=r"X holds 2 value\(s\) .* in cell 'cell_2', gene 'gene_1'"):
        read_matrix(named(form(values)))
    with pytest.raises(ValueError, match=r"layers\['raw'\] holds 2 value\(s\)"):
        read_matrix(named(form(values), "raw"), "raw")


@pytest.mark.parametrize("dtype", [np.complex64, object, "U1"])
def test_values_that_are_no_real_numbers_are_refused(dtype):
    adata = named(np.ones((2, 2)))
    adata.layers["odd"] = np.ones((2, 2)).astype(dtype)
    with pytest.raises(TypeError, match=r"layers\['odd'\] has dtype .*, which is not a real number"):
        read_matrix(adata, "odd")


def test_missing_matrices_and_layers_are_named():
    adata = named(np.ones((2, 2)), "lognorm")
    with pytest.raises(ValueError, match=r"has no X. Pass layer= .*'lognorm'"):
        read_matrix(adata)
    with pytest.raises(KeyError, match=r"no layer 'lognrm'. Did you mean 'lognorm'\?"):
        read_matrix(adata, "lognrm")
    with pytest.raises(TypeError, match=r"`layer` must be the name of a layer or None, found 3"):
        read_matrix(adata, 3)


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_must_be_unique(axis):
    adata = named(np.ones((3, 3)))
    setattr(adata, f"{axis}_names", ["x", "y", "x"])
    with pytest.raises(ValueError, match=rf"{axis}_names are not unique.*'x'.*{axis}_names_make_unique"):
        read_matrix(adata)
