"""Values in any form that a matrix has give the answer of float32 in csr."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm

N, M = 40, 24


def in_parts(matrix: sp.csr_matrix, data=None, indices=None, indptr=None) -> sp.csr_matrix:
    """A copy with other arrays, which scipy's constructor would convert or refuse."""
    copy = matrix.copy()
    copy.data = matrix.data.copy() if data is None else data
    copy.indices = matrix.indices.copy() if indices is None else indices
    copy.indptr = matrix.indptr.copy() if indptr is None else indptr
    return copy


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def backwards(matrix: sp.csr_matrix) -> sp.csr_matrix:
    parts = [slice(*pair) for pair in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
    turned = [np.concatenate([values[part][::-1] for part in parts]) for values in (matrix.data, matrix.indices)]
    return sp.csr_matrix((*turned, matrix.indptr.copy()), shape=matrix.shape)


def in_two_parts(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Each value stored twice, as one less and one."""
    data = np.column_stack([matrix.data - 1, np.ones_like(matrix.data)]).ravel()
    return sp.csr_matrix((data, np.repeat(matrix.indices, 2), 2 * matrix.indptr), shape=matrix.shape)


SPARSE = {
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "unsorted": backwards,
    "duplicated": in_two_parts,
    "read-only": lambda x: in_parts(x, *map(read_only, (x.data, x.indices, x.indptr))),
    "int64 indices": lambda x: in_parts(x, None, x.indices.astype(np.int64), x.indptr.astype(np.int64)),
    "big-endian": lambda x: in_parts(x, x.data.astype(">f4")),
    "big-endian doubles": lambda x: in_parts(x, x.data.astype(">f8")),
    "half": lambda x: in_parts(x, x.data.astype(np.float16)),
    "double": lambda x: x.astype(np.float64),
}
DENSE = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "read-only dense": read_only,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "half dense": lambda x: x.astype(np.float16),
    "big-endian dense": lambda x: x.astype(">f4"),
    "big-endian halves": lambda x: x.astype(">f2"),
    "long double": lambda x: x.astype(np.longdouble),
}
WHOLE = {f"{kind} {dtype}": (kind, dtype) for kind in ("csr", "dense") for dtype in ("i1", "u2", "i8", ">i4")}


def in_form(values: np.ndarray, form: str):
    matrix = sp.csr_matrix(values)
    if form in SPARSE:
        return SPARSE[form](matrix)
    if form in DENSE:
        return DENSE[form](values)
    kind, dtype = WHOLE[form]
    return in_parts(matrix, matrix.data.astype(dtype)) if kind == "csr" else values.astype(dtype)


def answers(X, likelihood: str) -> dict[str, np.ndarray]:
    """What every tool that reads values says of them."""
    cells, genes = pd.DataFrame(index=[f"c{i}" for i in range(N)]), pd.DataFrame(index=[f"g{j}" for j in range(M)])
    adata = ad.AnnData(X, cells, genes)
    dtype = adata.X.dtype
    lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False)
    lfm.tl.anomalies(adata)
    lfm.tl.hold_out(adata, 0.2)
    lfm.tl.fit(adata, 2, likelihood=likelihood, held_out="held_out", key_added="part", progress=False)
    new = ad.AnnData(X, cells, genes)
    lfm.tl.project(new, adata)
    found = {
        "eta": lfm.tl.predict(adata, obs_names=list(adata.obs_names), var_names="g3")["expected"].to_numpy(),
        "anomaly": np.append(adata.obs["lfm_anomaly"], adata.var["lfm_anomaly"]),
        "held out": adata.layers["held_out"].toarray(),
        "part": np.append(adata.uns["part"]["held_out"]["rmse"][-1], adata.var["part_b"]),
        "projected": new.obs["lfm_a"].to_numpy(),
        "coverage": lfm.tl.check(adata, refit=False).calibration["coverage"].to_numpy(),
    }
    if likelihood != "normal":
        lfm.tl.hold_out(adata, 0.2, by="molecules", key_added="held")
        found["molecules"] = adata.layers["held"].toarray()
    assert adata.X.dtype == dtype
    return found


@pytest.fixture(scope="module")
def plain():
    """Values with an empty row that half precision holds exactly, and the answers from float32 in csr."""
    eighths = np.rint(lfm.datasets.simulate(N, M, 2).X.clip(min=0) * 8) / 8
    counts = lfm.datasets.simulate(N, M, 2, likelihood="poisson", mu=0).X.toarray()
    eighths[3] = 0
    counts = {"normal": eighths.astype(np.float32), "poisson": counts}
    return {likelihood: (values, answers(sp.csr_matrix(values), likelihood)) for likelihood, values in counts.items()}


CASES = [("normal", form) for form in (*SPARSE, *DENSE)] + [
    ("poisson", form) for form in (*WHOLE, "half", "half dense", "big-endian halves", "duplicated")
]
# the forms that are least like the others
FAST = {
    "normal": {"csc", "duplicated", "half", "strided"},
    "poisson": {"csr >i4", "dense i1", "big-endian halves"},
}


@pytest.mark.filterwarnings("ignore:.* all zero:UserWarning")
@pytest.mark.parametrize(
    ("likelihood", "form"),
    [pytest.param(*case, marks=() if case[1] in FAST[case[0]] else pytest.mark.slow) for case in CASES],
    ids=map(" ".join, CASES),
)
def test_values_in_any_form_give_the_plain_answer(plain, likelihood, form):
    values, expected = plain[likelihood]
    found = answers(in_form(values, form), likelihood)
    for name, value in expected.items():
        # sums in another order; the fits stop when the same share is missing
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-3, equal_nan=True, err_msg=name)


@pytest.mark.parametrize("values", [sp.csr_matrix, np.asarray])
def test_booleans_are_zeros_and_ones(values):
    ones = lfm.datasets.simulate(N, M, 2, likelihood="bernoulli", mu=0).X.toarray()
    found = []
    for dtype in (np.float32, bool):
        adata = ad.AnnData(values(ones.astype(dtype)))
        lfm.tl.fit(adata, 2, likelihood="bernoulli", progress=False)
        axes = lfm.pl.factors(adata, adata.var_names[0], show=False)
        assert axes.get_legend() is None, "a gene's values are numbers"
        found.append(np.append(adata.var["lfm_b"], axes.collections[-1].get_array()))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_copied_is_named_and_left_as_it_is():
    """SciPy holds half precision that it was handed, but makes no copy of it."""
    values = np.random.default_rng(0).random((N, M)).astype(np.float32)
    adata = ad.AnnData(in_form(values, "half"))
    with pytest.raises(ValueError, match=r"`adata` cannot be copied .*Pass copy=False"):
        lfm.tl.fit(adata, 1, progress=False, copy=True)
    assert list(adata.uns) == []
