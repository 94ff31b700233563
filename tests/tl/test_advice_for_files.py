"""Calls that errors name are such as a backed AnnData takes."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import scvi_lfm as lfm

N, M = 40, 12

pytestmark = pytest.mark.filterwarnings("ignore:The fit did not converge:UserWarning")


@pytest.fixture
def adata(tmp_path):
    x = 1 + np.random.default_rng(0).poisson(1.0, (N, M)).astype(np.float32)
    x[7] = 0
    made = ad.AnnData(sp.csr_matrix(x))
    made.obs["donor"] = ["one", None] * (N // 2)
    made.write_h5ad(tmp_path / "cells.h5ad")
    return ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")


def refusal(adata, **options):
    with pytest.raises(ValueError, match="cell") as told:
        lfm.tl.fit(adata, 2, max_epochs=1, progress=False, **options)
    return str(told.value)


def test_cells_without_counts_are_taken_out_in_memory(adata):
    told = refusal(adata, likelihood="negative_binomial")
    calls = re.search(r"Call (adata = .*), then (sc\..*) first", told).groups()
    known = {"adata": adata, "sc": sc}
    for call in calls:
        exec(call, known)
    assert known["adata"].shape == (N - 1, M)


def test_cells_of_which_a_covariate_is_missing_are_left_out(adata):
    told = refusal(adata, likelihood="poisson", covariates="donor")
    part = eval(re.search(r"adata\[.*\)", told).group(), {"adata": adata})
    assert part.shape == (N // 2, M)
    assert not part.isbacked
