"""One thread a process, unless the user asks for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch

CONFTEST = Path(__file__).with_name("conftest.py")
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
VARIABLES = (*NUMBERS, "OMP_WAIT_POLICY")


def test_this_process_has_the_threads_that_were_asked_for():
    """After a parallel loop of numba, too, which would set them to the number of cores."""
    if len({os.environ[name] for name in NUMBERS}) > 1:
        pytest.skip("different numbers were asked for")
    sc.pp.normalize_total(ad.AnnData(sp.csr_matrix(np.ones((20, 10), dtype=np.float32))), target_sum=1)
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, "1 1 1 1 PASSIVE", marks=pytest.mark.slow),
        ({"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}, "2 2 2 2 ACTIVE"),
        pytest.param({"MKL_NUM_THREADS": "3"}, "1 3 1 1 PASSIVE", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_the_user_has_set_is_honoured(given, expected):
    code = f"import os, runpy, sys; runpy.run_path(sys.argv[1]); print(*map(os.environ.get, {VARIABLES}))"
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", code, str(CONFTEST)], capture_output=True, text=True, check=True, env=clean | given
    )
    assert run.stdout.split() == expected.split()
