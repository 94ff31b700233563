"""A fit leaves nothing global behind, and says what device and seed it takes."""

from __future__ import annotations

import os
import random
import warnings

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm._context import pyro_sandbox, resolve_device
from scvi_lfm._validate import resolve_rng


def global_state():
    import matplotlib as mpl
    import pyro
    import scanpy as sc

    return {
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "random": random.getstate(),
        "torch": torch.random.get_rng_state().tolist(),
        "filters": list(warnings.filters),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "errors": np.geterr(),
        "print": np.get_printoptions(),
        "pyro": (list(pyro.get_param_store().keys()), pyro.settings.get("module_local_params")),
        "validation": torch.distributions.Distribution._validate_args,
        "matplotlib": dict(mpl.rcParams),
        "scanpy": (sc.settings.verbosity, sc.settings.autoshow),
        "environment": dict(os.environ),
        "settings": (lfm.settings.device, lfm.settings.progress, lfm.settings.verbosity),
    }


@pytest.fixture(scope="module")
def imported():
    """Everything that the engines import lazily, some of which sets filters of its own when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lfm.tl.fit(lfm.datasets.simulate(10, 8, 1), 1, engine="pyro", max_epochs=1, progress=False)


@pytest.mark.usefixtures("imported")
@pytest.mark.filterwarnings("ignore:The fit did not converge")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 20},
        {"noise": "gene", "family": "mean_field"},
        {"engine": "pyro", "max_epochs": 5},
        {"engine": "pyro", "max_epochs": 2, "batch_size": 20},
    ],
)
def test_a_fit_leaves_global_state_as_it_was(options):
    adata = lfm.datasets.simulate(60, 30, 2)
    before = global_state()
    lfm.tl.fit(adata, 2, progress=False, **options)
    after = global_state()
    for name, state in before.items():
        assert after[name] == state, name


def test_a_failing_fit_leaves_global_state_as_it_was(monkeypatch):
    adata = lfm.datasets.simulate(60, 30, 2)
    before = global_state()

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("scvi_lfm.inference.normal.finish.drop_unused_factors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lfm.tl.fit(adata, 2, progress=False)
    assert list(adata.obsm) == ["A"]
    assert list(adata.uns) == ["mu"]
    after = global_state()
    for name, state in before.items():
        assert after[name] == state, name


def test_global_seeds_do_not_matter():
    fits = []
    for seed in (0, 1):
        adata = lfm.datasets.simulate(60, 30, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = np.random.get_state()  # noqa: NPY002
            np.random.seed(seed)  # noqa: NPY002
            lfm.tl.fit(adata, 2, progress=False, batch_size=20)
            np.random.set_state(state)  # noqa: NPY002
        fits.append(adata.obsm["X_lfm"])
    np.testing.assert_array_equal(*fits)


def test_pyro_finds_an_empty_store_and_leaves_ones_own():
    import pyro

    store = pyro.get_param_store()
    store["mine"] = torch.zeros(2)
    try:
        with pyro_sandbox(0, torch.device("cpu")):
            assert list(pyro.get_param_store().keys()) == []
            pyro.param("mine", torch.ones(3))
        assert torch.equal(store["mine"], torch.zeros(2))
    finally:
        del store["mine"]


@pytest.mark.parametrize("rng", [3, 3.0, np.int64(3), np.float32(3)])
def test_an_int_always_gives_the_same_stream(rng):
    assert resolve_rng(rng).random() == np.random.default_rng(3).random()


def test_a_generator_is_used_and_advanced():
    generator = np.random.default_rng(0)
    assert resolve_rng(generator) is generator


@pytest.mark.parametrize(
    ("rng", "error", "message"),
    [
        (None, TypeError, r"`rng` must be an int or a numpy\.random\.Generator, found None of type NoneType"),
        (True, TypeError, r"`rng` must be an int .* found True of type bool"),
        (0.5, TypeError, r"`rng` must be an int .* found 0\.5 of type float"),
        (np.random.RandomState(0), TypeError, r"`rng` must be an int .* of type RandomState"),
        (-1, ValueError, r"`rng` must be at least 0, found -1"),
    ],
)
def test_a_wrong_seed_is_named(rng, error, message):
    with pytest.raises(error, match=message):
        resolve_rng(rng)


def test_device_follows_the_setting(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(lfm.settings, "_device", "cpu")
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        (None, TypeError, r"`device` must be a string such as .* found None"),
        ("quantum", ValueError, r"`device` 'quantum' is not a device that torch knows"),
        ("meta", ValueError, r"`device` 'meta' is not supported; pass 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_wrong_device_is_named(device, error, message):
    with pytest.raises(error, match=message):
        resolve_device(device)


def test_an_absent_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"`device` 'cuda' was asked for, but torch finds no CUDA device here"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")
