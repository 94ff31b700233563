"""One thread a process, unless the user asks for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFTEST = Path(__file__).with_name("conftest.py")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def test_this_process_has_the_threads_that_were_asked_for():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1 1 1 1"),
        ({"OMP_NUM_THREADS": "2"}, "2 2 2 2"),
        ({"MKL_NUM_THREADS": "3"}, "1 3 1 1"),
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
