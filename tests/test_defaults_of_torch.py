"""Results do not depend on torch's default dtype and default device, which other libraries set."""

from __future__ import annotations

import ast
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scvi_lfm as lfm

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = Path(lfm.__file__).parent
# what makes tensors of the default dtype, and what makes whole numbers or takes the dtype of an array
OF_DEFAULT_DTYPE = {
    *("zeros", "ones", "empty", "full", "eye", "linspace", "logspace", "scalar_tensor", "tensor"),
    *("rand", "randn", "normal"),
}
OF_DEFAULT_DEVICE = OF_DEFAULT_DTYPE | {
    *("arange", "as_tensor", "asarray", "tril_indices", "triu_indices", "randint", "randperm"),
    *("sparse_coo_tensor", "sparse_csr_tensor", "sparse_compressed_tensor"),
}


def left_to_defaults(source: str) -> list[tuple[int, str, str]]:
    """Line, function and argument of every call that leaves a dtype or a device to torch."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)):
                named = {keyword.arg for keyword in node.keywords}
                for argument, makers in (("dtype", OF_DEFAULT_DTYPE), ("device", OF_DEFAULT_DEVICE)):
                    if name in makers and argument not in named:
                        found.append((node.lineno, name, argument))
    return found


def test_every_new_tensor_names_its_dtype_and_device():
    found = {str(path.relative_to(PACKAGE)): left_to_defaults(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert not {path: calls for path, calls in found.items() if calls}


def test_the_walk_sees_what_is_left_out():
    source = "torch.zeros(3)\nx.new_zeros(3)\ntorch.eye(2, dtype=d)\ntorch.arange(3, device=e)\ntorch.as_tensor(y)\n"
    assert left_to_defaults(source) == [
        (1, "zeros", "dtype"),
        (1, "zeros", "device"),
        (3, "eye", "device"),
        (5, "as_tensor", "device"),
    ]


@contextmanager
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def results(likelihood: str, **options) -> dict[str, object]:
    """What every tool makes of one data set."""
    adata = lfm.datasets.simulate(40, 30, 2, mu=1, likelihood="normal" if likelihood == "student_t" else likelihood)
    adata.obs["odd"] = np.arange(40) % 2 == 1
    lfm.tl.hold_out(adata, key_added="test")
    lfm.tl.fit(adata, 2, likelihood=likelihood, progress=False, **options)
    lfm.tl.rank_genes(adata, mask_obs="odd")
    lfm.tl.rank_cells(adata, "gene_1")
    lfm.tl.predict(adata, layer_added="expected")
    found: dict[str, object] = {"fit": adata, "similar": lfm.tl.similar_genes(adata, "gene_1")}
    found["entries"] = lfm.tl.predict(adata, obs_names="cell_3", var_names="gene_4")
    found["draws"] = lfm.tl.sample_posterior(adata, 2)["A"]
    if sp.issparse(adata.X):
        found["unseen"] = lfm.tl.recommend(adata, n_top=2)
    if options.get("engine") != "pyro":
        lfm.tl.anomalies(adata)
        report = lfm.tl.check(adata, refit=False)
        found |= {"calibration": report.calibration, "convergence": report.convergence}
        found["new"] = lfm.tl.project(adata, adata[:, 3:].copy(), key_added="new", copy=True)
    return found


def assert_same_bits(one: object, other: object) -> None:
    if isinstance(one, ad.AnnData):
        for container in ("obsm", "varm", "layers", "uns"):
            assert_same_bits(dict(getattr(one, container)), dict(getattr(other, container)))
        one, other = {"obs": one.obs, "var": one.var}, {"obs": other.obs, "var": other.var}
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in set(one) - {"seconds"}:
            assert_same_bits(one[name], other[name])
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    elif sp.issparse(one):
        np.testing.assert_array_equal(one.toarray(), other.toarray())
    elif getattr(one, "dtype", None) is not None and one.dtype.names:  # NaN of a record is not equal to itself
        assert_same_bits(
            {name: one[name] for name in one.dtype.names}, {name: other[name] for name in other.dtype.names}
        )
    else:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


FITS = {
    "normal": ("normal", {}),
    "noise of cells": ("normal", {"noise": "cell_gene"}),
    "covariates": ("normal", {"covariates": "odd"}),
    "held out": ("normal", {"held_out": "test"}),
    "counts": ("negative_binomial", {}),
    "counts, held out": ("poisson", {"held_out": "test"}),
    "counts, covariates": ("negative_binomial", {"covariates": "odd"}),
    "zeros and ones": ("bernoulli", {}),
}


def others_slow(names: Iterable[str], *fast: str) -> list:
    """The names, all but a few marked slow: each takes seconds."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", others_slow(FITS, "counts, held out"))
def test_every_tool_gives_the_same_bits(name):
    likelihood, options = FITS[name]
    expected = results(likelihood, **options)
    with double():
        assert_same_bits(results(likelihood, **options), expected)
    with torch.device("meta"):
        assert_same_bits(results(likelihood, **options), expected)


@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_caller_may_do_without_gradients(without):
    options = {"max_epochs": 3, "engine": "pyro"}
    expected = results("normal", **options)
    with without():
        assert_same_bits(results("normal", **options), expected)


PYRO = {
    "mean field": {"guide": "mean_field"},
    "student t": {"likelihood": "student_t"},
    "low rank": {"guide": "low_rank", "likelihood": "negative_binomial"},
    "flow": {"guide": "flow", "likelihood": "poisson"},
}


@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize("name", others_slow(PYRO, "mean field"))
def test_fits_by_pyro_give_the_same_bits(name):
    options = {"max_epochs": 3, "engine": "pyro", **PYRO[name]}
    likelihood = str(options.pop("likelihood", "normal"))
    expected = results(likelihood, **options)
    with double():
        assert_same_bits(results(likelihood, **options), expected)
