"""The Pyro program says what the formula says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import spline_autoregressive
from scipy.stats import norm

from scvi_lfm.model import GuideParameters, Scales, flow_guide, guide, mean_field_guide, model
from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.model.program import observation

N, M, R = 6, 5, 2
LATENTS = ("mu", "a", "A", "b", "B")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["shared", "gene"])
def scales(request):
    sigma = 0.7 if request.param == "shared" else np.linspace(0.5, 1.3, M)
    values = (0.3, [1.0, 2.0], 1.5, [0.4, 0.2], sigma)
    return Scales(*(torch.as_tensor(value, dtype=torch.float64) for value in values))


@pytest.fixture
def latents():
    return {
        "mu": normal(seed=1),
        "a": normal(N, 1, seed=2),
        "A": normal(N, 1, R, seed=3),
        "b": normal(M, seed=4),
        "B": normal(M, R, seed=5),
    }


@pytest.fixture
def parameters():
    def tril(*shape):
        return torch.tril(normal(*shape, seed=6), -1) + torch.diag_embed(torch.ones(shape[:-1]).double())

    return GuideParameters(
        mu_loc=normal(seed=7),
        mu_scale=torch.tensor(0.1, dtype=torch.float64),
        cell_loc=normal(N, R + 1, seed=8),
        cell_tril=tril(R + 1, R + 1),
        gene_loc=normal(M, R + 1, seed=9),
        gene_tril=tril(M, R + 1, R + 1),
    )


def test_log_joint_is_the_formulas(scales, latents):
    y = normal(N, M)
    trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(y, scales)
    mu, a, A, b, B = (latents[name].numpy() for name in LATENTS)
    A = A[:, 0]
    expected = (
        norm.logpdf(mu, 0, 100)
        + norm.logpdf(a, 0, 0.3).sum()
        + norm.logpdf(A, 0, [1, 2]).sum()
        + norm.logpdf(b, 0, 1.5).sum()
        + norm.logpdf(B, 0, [0.4, 0.2]).sum()
        + norm.logpdf(y, mu + a + b + A @ B.T, scales.sigma.numpy()).sum()
    )
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("program", [guide, mean_field_guide])
def test_guides_have_the_models_latents_in_the_formulas_order(scales, parameters, program):
    y = normal(N, M)
    of_model = poutine.trace(model).get_trace(y, scales)
    of_guide = poutine.trace(program).get_trace(y, parameters)
    for trace in (of_model, of_guide):
        assert [name for name in trace.stochastic_nodes if name not in {"cells", "genes"}] == list(LATENTS)
    assert of_model.observation_nodes == ["y"]
    for name in LATENTS:
        assert of_model.nodes[name]["value"].shape == of_guide.nodes[name]["value"].shape


@pytest.mark.parametrize("program", [model, guide, mean_field_guide])
def test_a_batch_of_cells_is_scaled_to_all(scales, parameters, program):
    y = normal(N, M)
    argument = scales if program is model else parameters
    rows = torch.tensor([3, 0, 11])
    if program is not model:
        argument = GuideParameters(**{**vars(parameters), "cell_loc": parameters.cell_loc[:3]})
    trace = poutine.trace(program).get_trace(y[:3], argument, n_cells=12, rows=rows)
    for name in ("mu", "b", "B"):
        assert trace.nodes[name]["scale"] == 1
    for name in {"a", "A", "y"} & set(trace.nodes):
        assert trace.nodes[name]["scale"] == 12 / 3


def test_row_block_guide_is_a_joint_normal(parameters):
    trace = poutine.trace(guide).get_trace(normal(N, M), parameters)
    trace.compute_log_prob()
    for first, rest, loc, tril in (
        ("a", "A", parameters.cell_loc, parameters.cell_tril),
        ("b", "B", parameters.gene_loc, parameters.gene_tril),
    ):
        values = torch.cat([trace.nodes[first]["value"][..., None], trace.nodes[rest]["value"]], dim=-1)
        joint = torch.distributions.MultivariateNormal(loc, scale_tril=tril)
        found = trace.nodes[first]["log_prob"] + trace.nodes[rest]["log_prob"]
        torch.testing.assert_close(found.flatten(), joint.log_prob(values.reshape(loc.shape)))


def test_mean_field_guide_has_independent_latents(parameters):
    trace = poutine.trace(mean_field_guide).get_trace(normal(N, M), parameters)
    for name, loc, tril in (
        ("A", parameters.cell_loc[:, None], parameters.cell_tril),
        ("B", parameters.gene_loc, parameters.gene_tril),
    ):
        site = trace.nodes[name]["fn"]
        torch.testing.assert_close(site.mean, loc[..., 1:].expand(site.mean.shape))
        torch.testing.assert_close(site.stddev, tril.diagonal(dim1=-2, dim2=-1)[..., 1:].expand(site.stddev.shape))


def test_guides_take_a_covariance_for_each_cell(parameters):
    tril = torch.tril(normal(N, R + 1, R + 1, seed=10), -1) + torch.diag_embed(1 + normal(N, R + 1, seed=11) ** 2)
    parameters = replace(parameters, cell_tril=tril)
    trace = poutine.trace(guide).get_trace(normal(N, M), parameters)
    trace.compute_log_prob()
    values = torch.cat([trace.nodes["a"]["value"], trace.nodes["A"]["value"][:, 0]], dim=-1)
    joint = torch.distributions.MultivariateNormal(parameters.cell_loc, scale_tril=tril)
    found = trace.nodes["a"]["log_prob"] + trace.nodes["A"]["log_prob"]
    torch.testing.assert_close(found[:, 0], joint.log_prob(values))
    site = poutine.trace(mean_field_guide).get_trace(normal(N, M), parameters).nodes["A"]["fn"]
    torch.testing.assert_close(site.stddev[:, 0], tril.diagonal(dim1=-2, dim2=-1)[:, 1:])


@pytest.fixture
def flows():
    """Two flows, neither the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [spline_autoregressive(R + 1, hidden_dims=[8], count_bins=4).double() for _ in range(2)]
    return {"cell_flow": made[0], "gene_flow": made[1]}


def test_density_of_the_flow_guide_is_that_of_its_draws(parameters, flows):
    """By the rule for changes of variables, with derivatives of the map from noise to rows."""
    y = normal(N, M)
    trace = poutine.trace(flow_guide).get_trace(y, replace(parameters, **flows))
    assert [name for name in trace.stochastic_nodes if name in LATENTS] == list(LATENTS)
    trace.compute_log_prob()
    for site, first, rest, loc, tril, flow in (
        ("z_cells", "a", "A", parameters.cell_loc, parameters.cell_tril.expand(N, -1, -1), flows["cell_flow"]),
        ("z_genes", "b", "B", parameters.gene_loc, parameters.gene_tril, flows["gene_flow"]),
    ):
        shape = trace.nodes[site]["value"].reshape(loc.shape)
        rows = torch.cat([trace.nodes[first]["value"].reshape(-1, 1), trace.nodes[rest]["value"].flatten(0, -2)], dim=1)
        torch.testing.assert_close(rows, loc + (tril @ shape[..., None])[..., 0])
        found = sum(trace.nodes[name]["log_prob"].flatten() for name in (site, first, rest))
        for row in range(len(loc)):
            noise = flow.inv(shape[row])
            jacobian = tril[row] @ torch.autograd.functional.jacobian(flow, noise)
            expected = norm.logpdf(noise.detach().numpy()).sum() - torch.linalg.slogdet(jacobian).logabsdet
            assert float(found[row].detach()) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_log_joint_of_counts_is_that_of_the_likelihoods_and_the_priors(scales, latents, likelihood):
    unit = COUNTS[likelihood]
    theta, log_size = torch.linspace(0.5, 4, M).double(), 0.3 * normal(N, seed=12)
    y = torch.arange(N * M).reshape(N, M).double() % (2 if unit.maximum else 5)
    # the units take a dispersion of zero for 1e-8, which large rates would show
    latents = {name: value / 2 for name, value in latents.items()}
    conditioned = poutine.condition(model, data=latents)
    arguments = {"likelihood": likelihood, "log_size": log_size}
    trace = poutine.trace(conditioned).get_trace(y, replace(scales, theta=theta), **arguments)
    eta = latents["mu"] + latents["a"] + latents["b"] + latents["A"][:, 0] @ latents["B"].T
    dispersion = 1 / theta if unit.learns_dispersion else torch.zeros(M)
    expected = unit.log_density(y, (eta + log_size[:, None]).exp(), dispersion).sum()
    normal_trace = poutine.trace(conditioned).get_trace(y, scales)
    normal_trace.compute_log_prob()
    trace.compute_log_prob()
    for name in LATENTS:
        torch.testing.assert_close(trace.nodes[name]["log_prob"], normal_trace.nodes[name]["log_prob"])
    assert float(trace.nodes["y"]["log_prob"].sum()) == pytest.approx(float(expected), rel=1e-6)


def test_counts_have_size_factors_of_one_by_default(scales):
    eta = torch.tensor([[-2.0, 0.5]]).double()
    sites = {"mu": eta.new_zeros(()), "a": eta.new_zeros(1, 1), "A": eta.new_zeros(1, 1, R)}
    sites |= {"b": eta[0], "B": eta.new_zeros(2, R)}
    trace = poutine.trace(poutine.condition(model, data=sites)).get_trace(eta, scales, likelihood="poisson")
    torch.testing.assert_close(trace.nodes["y"]["fn"].mean, eta.exp())


@pytest.mark.parametrize("rate", [1e-12, 1e-3, 1.0, 50.0])
def test_presence_keeps_its_digits(scales, rate):
    eta = torch.tensor(rate, dtype=torch.float64).log()
    found = observation("bernoulli", eta, scales)
    assert float(found.log_prob(torch.tensor(0.0).double())) == pytest.approx(-rate, rel=1e-9)
    assert float(found.log_prob(torch.tensor(1.0).double())) == pytest.approx(np.log(-np.expm1(-rate)), rel=1e-9)


def test_there_is_no_other_likelihood(scales):
    with pytest.raises(ValueError, match="There is no likelihood 'gamma'"):
        model(normal(N, M), scales, likelihood="gamma")


def test_draws_of_the_prior_have_the_models_moments(scales):
    with torch.random.fork_rng(devices=[]), pyro.plate("draws", 4000, dim=-3):
        torch.manual_seed(0)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(normal(N, M), scales)
    y = trace.nodes["y"]["value"] - trace.nodes["mu"]["value"]
    sigma = scales.sigma.numpy()
    expected = 0.3**2 + 1.5**2 + (1 * 0.4) ** 2 + (2 * 0.2) ** 2 + np.broadcast_to(sigma, M) ** 2
    # five standard errors, with the heavy tails of products of Normals
    np.testing.assert_allclose(y.var(0).mean(0), expected, rtol=5 * np.sqrt(3 / 4000))


def test_programs_leave_pyros_store_alone(scales, parameters):
    pyro.get_param_store()["mine"] = torch.ones(2)
    try:
        model(normal(N, M), scales)
        guide(normal(N, M), parameters)
        assert list(pyro.get_param_store().keys()) == ["mine"]
    finally:
        del pyro.get_param_store()["mine"]
