"""Guides that the user brings."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import distributions as dist

import scvi_lfm as lfm
from scvi_lfm.model import Scales, model


def own_guide(y, *, n_cells, rows):
    """Mean field, as a user would write it."""
    m = y.shape[1]

    def normal(name, *shape):
        loc = pyro.param(f"{name}_loc", lambda: 0.1 * torch.randn(shape).double())
        scale = pyro.param(f"{name}_scale", lambda: torch.full(shape, 0.2).double(), dist.constraints.positive)
        return loc, scale

    def of_rows(name, *shape):
        loc, scale = normal(name, n_cells, *shape)
        return loc[rows], scale[rows]

    pyro.sample("mu", dist.Normal(*normal("mu")))
    with pyro.plate("cells", n_cells, subsample=rows, dim=-2):
        pyro.sample("a", dist.Normal(*of_rows("a", 1)))
        pyro.sample("A", dist.Normal(*of_rows("A", 1, 2)).to_event(1))
    with pyro.plate("genes", m, dim=-1):
        pyro.sample("b", dist.Normal(*normal("b", m)))
        pyro.sample("B", dist.Normal(*normal("B", m, 2)).to_event(1))


@pytest.mark.slow
def test_a_guide_of_ones_own_runs_and_leaves_pyros_store_alone(adata, few_steps, monkeypatch):
    monkeypatch.setattr("scvi_lfm.inference.pyro.own_guide.DRAWS", 50)
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("mu_loc", torch.tensor(7.0))
        few_steps(adata, own_guide, batch_size=10)
        assert {name: value.item() for name, value in store.items()} == {"mu_loc": 7.0}
    assert adata.uns["lfm"]["params"]["guide"] == "callable"
    assert (adata.obsm["X_lfm_sd"] > 0).all()


def without_b(y, *, n_cells, rows):
    with pyro.poutine.block(hide=["b"]):
        own_guide(y, n_cells=n_cells, rows=rows)


def wrong_shape(y, *, n_cells, rows):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    pyro.sample("a", dist.Normal(torch.zeros(len(rows)), 1.0).to_event(1))


def without_parameters(y, *, n_cells, rows):
    model(y, Scales(*(torch.ones(shape) for shape in ((), (2,), (), (2,)))), n_cells=n_cells, rows=rows)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without_b, "The guide that was passed has no site 'b'; the model's are mu, a, A, b, B."),
        (wrong_shape, "Site 'a' of the guide that was passed has shape (30,), not (30, 1)."),
        (without_parameters, "The guide that was passed has no parameters to learn"),
    ],
)
def test_guides_that_do_not_fit_the_model(adata, function, message):
    with pytest.raises(ValueError, match="guide") as error:
        lfm.tl.fit(adata, 2, engine="pyro", guide=function, progress=False)
    assert message in str(error.value)


@pytest.mark.parametrize("which", ["low_rank", "flow", own_guide], ids=["low_rank", "flow", "callable"])
def test_the_normal_has_no_use_for_other_guides(which):
    adata = lfm.datasets.simulate(10, 8, 1)
    with pytest.raises(ValueError, match="the best q of a row is a Normal, as in 'row_block'"):
        lfm.tl.fit(adata, 1, engine="pyro", guide=which, progress=False)
