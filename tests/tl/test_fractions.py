"""`max_epochs` counts readings of all cells: a fraction ends a fit within an epoch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp

import scvi_lfm as lfm

POISSON = {"likelihood": "poisson", "mu": 1.0}


def fit(max_epochs, batch_size=20, drawn=None, **options):
    """A fit of 60 cells, and how often they were read."""
    adata = lfm.datasets.simulate(60, 30, 2, **(drawn or {}))
    adata.layers["test"] = sp.csr_matrix(np.random.default_rng(0).random(adata.shape) < 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lfm.tl.fit(adata, 2, batch_size=batch_size, max_epochs=max_epochs, tol=1e-9, progress=False, **options)
    return adata, adata.uns["lfm"]["elbo"]["epoch"]


@pytest.mark.parametrize(
    ("drawn", "options"),
    [
        ({}, {}),
        ({}, {"held_out": "test"}),
        (POISSON, {}),
        pytest.param(POISSON, {"held_out": "test"}, marks=pytest.mark.slow),
        ({}, {"engine": "pyro"}),
        pytest.param({}, {"likelihood": "student_t", "engine": "pyro"}, marks=pytest.mark.slow),
        pytest.param(POISSON, {"engine": "pyro"}, marks=pytest.mark.slow),
    ],
)
def test_a_fit_ends_after_a_share_of_the_minibatches(drawn, options):
    """Three minibatches; the first epoch of a Normal has two, beside the one that it starts from."""
    normal = options == {} and not drawn
    adata, epochs = fit(0.3, drawn=drawn, **options)
    assert epochs[-1] == pytest.approx(1 / 2 if normal else 1 / 3)
    assert adata.uns["lfm"]["params"]["max_epochs"] == 0.3
    _, epochs = fit(1.6, drawn=drawn, **options)
    assert epochs[-1] == pytest.approx(1 + 2 / 3)
    assert epochs[epochs <= 1][-1] == 1
    assert np.isfinite(adata.obsm["X_lfm"]).all()
    if "held_out" in options:
        assert adata.uns["lfm"]["held_out"]["epoch"][-1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("drawn", [{}, POISSON])
def test_cells_in_one_batch_are_read_whole(drawn):
    half, epochs = fit(0.5, 60, drawn)
    assert epochs[-1] == 1
    assert half.uns["lfm"]["params"]["max_epochs"] == 1
    np.testing.assert_array_equal(half.obsm["X_lfm"], fit(1, 60, drawn)[0].obsm["X_lfm"])


@pytest.mark.parametrize("drawn", [{}, POISSON])
def test_the_bound_of_a_part_of_an_epoch_is_that_of_its_cells(drawn):
    """Above that of one epoch, and closer to that of two: the last step has seen all cells in each of them."""
    one, part, two = (fit(epochs, drawn=drawn)[0].uns["lfm"]["elbo"]["value"][-1] for epochs in (1, 1.6, 2))
    assert one < part
    assert abs(two - part) < two - one


def test_a_number_of_factors_is_chosen_within_an_epoch():
    adata = lfm.datasets.simulate(200, 50, 2)
    with pytest.warns(UserWarning, match=r"did not converge to tol=0.005 in 0.5 epoch"):
        lfm.tl.fit(adata, "auto", batch_size=50, max_epochs=0.5, progress=False)
    assert adata.uns["lfm"]["elbo"]["epoch"][-1] == pytest.approx(2 / 3)
