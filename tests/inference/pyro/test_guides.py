"""Guides with parameters of their own for each row."""

from __future__ import annotations

import pyro
import pytest
import torch

from scvi_lfm._context import pyro_sandbox
from scvi_lfm.inference.pyro.guides import RANK, RowGuide, RowParameters
from scvi_lfm.linalg.packed import unpack

CPU = torch.device("cpu")
GUIDES = ("mean_field", "row_block", "low_rank", "flow")


def roots(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(n, k, k, generator=generator, dtype=torch.float64)
    return torch.linalg.cholesky(raw @ raw.mT + torch.eye(k))


@pytest.mark.parametrize("form", GUIDES)
def test_rows_have_the_covariances_of_their_form(form):
    loc, tril = torch.arange(30.0).double().reshape(6, 5), roots(6, 5)
    rows = RowParameters(loc, tril, form)
    found_loc, found = rows()
    torch.testing.assert_close(found_loc, loc)
    cov = (found @ found.mT).detach()
    if form == "mean_field":
        torch.testing.assert_close(cov, torch.diag_embed(tril.square().sum(-1)))
    elif form == "low_rank":
        scale = tril.norm(dim=-1)
        beyond = cov / (scale[:, :, None] * scale[:, None]) - torch.eye(5)
        assert (torch.linalg.matrix_rank(beyond, atol=1e-10, rtol=0) == RANK).all()
    else:
        torch.testing.assert_close(found, tril)


@pytest.mark.slow
def test_moments_of_a_flow_are_those_of_its_draws():
    with pyro_sandbox(0, CPU):
        loc, tril = torch.arange(12.0).double().reshape(4, 3), roots(4, 3)
        rows = RowGuide("flow", torch.tensor(0.5).double(), (loc, tril), (loc, tril))
        for flow in (rows.cell_flow, rows.gene_flow):
            bias = flow.arn.layers[-1].bias
            bias.data += torch.randn(bias.shape)
        found = rows.moments([])
        y = torch.zeros(4, 4).double()
        with pyro.plate("draws", 20_000, dim=-3), torch.no_grad():
            sites = rows.program(torch.arange(4))(y)
    for first, rest, mean, cov in (
        ("a", "A", found.cell_mean, found.cell_cov),
        ("b", "B", found.gene_mean, found.gene_cov),
    ):
        drawn = torch.cat([sites[first].reshape(-1, 4, 1), sites[rest].reshape(-1, 4, 2)], dim=2)
        sd = unpack(cov).diagonal(dim1=-2, dim2=-1).sqrt()
        assert ((drawn.mean(0) - mean).abs() < 0.03 * sd).all()
        assert not torch.allclose(mean, loc, atol=0.01)
        for row in range(4):
            torch.testing.assert_close(torch.cov(drawn[:, row].T), unpack(cov[row]), rtol=0.05, atol=0.05)
