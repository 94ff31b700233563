"""The Pyro engine for counts, and the closed form held against it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO

import scvi_lfm as lfm
from scvi_lfm._context import pyro_sandbox
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference import fit_natural_gradient, pyro_own_guide
from scvi_lfm.inference.pyro_counts import CountProgram
from scvi_lfm.inference.pyro_engine import _optimise, fit_pyro
from scvi_lfm.inference.pyro_guides import RANK, RowGuide, Rows
from scvi_lfm.inference.trace import Trace
from scvi_lfm.linalg.packed import unpack
from scvi_lfm.model import GuideParameters, Scales, guide, model
from scvi_lfm.posterior.gauge import balance, shift_constants, translate_cells, translate_genes
from scvi_lfm.posterior.posterior import extend

CPU = torch.device("cpu")
GUIDES = ("mean_field", "row_block", "low_rank", "flow")


@pytest.fixture
def counts(fit_options):
    """A small matrix of counts with options to fit it, by likelihood."""

    def draw(likelihood, n_cells=30, n_genes=20, **scales):
        scales = {"mu": 1.0, "cell_scale": 0.3, "gene_scale": 0.7, "factor_scales": [0.6, 0.4], "rng": 1} | scales
        adata = lfm.datasets.simulate(n_cells, n_genes, 2, likelihood=likelihood, depth_spread=0.3, **scales)
        options = fit_options(
            n_factors=2,
            likelihood=likelihood,
            log_size=np.log(adata.obs["size_factor"].to_numpy()),
            tol=1e-3,
            max_epochs=6000,
        )
        return CellMatrix.of(adata.X.toarray()), options

    return draw


# rows


def roots(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(n, k, k, generator=generator, dtype=torch.float64)
    return torch.linalg.cholesky(raw @ raw.mT + torch.eye(k))


@pytest.mark.parametrize("form", GUIDES)
def test_rows_have_the_covariances_of_their_form(form):
    loc, tril = torch.arange(30.0).double().reshape(6, 5), roots(6, 5)
    rows = Rows(loc, tril, form)
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


def test_only_the_rows_drawn_are_stepped(counts):
    matrix, options = counts("poisson")
    with pyro_sandbox(0, CPU):
        program = CountProgram(matrix, replace(options, batch_size=10))
        table = program.guide.cells.table
        for rows, batch in program.batches.numbered_epoch():
            before = table.detach().clone()
            optimisers = program.optimisers()
            program.loss(rows, batch).backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            moved = (table.detach() != before).any(dim=1)
            assert set(torch.nonzero(moved).flatten().tolist()) == set(rows.tolist())


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


# the engine


@pytest.mark.parametrize(
    ("likelihood", "which"),
    [("negative_binomial", which) for which in GUIDES] + [("poisson", "row_block"), ("bernoulli", "row_block")],
)
def test_every_guide_and_every_likelihood_gain(counts, likelihood, which):
    matrix, options = counts(likelihood)
    with pyro_sandbox(0, CPU):
        program = CountProgram(matrix, replace(options, guide=which))
        start = program.elbo(200)
        values, _ = _optimise(program, 600, replace(options, max_epochs=60, guide=which))
        result = program.finish(Trace(values, program.rank0, converged=False))
    assert result.elbo[-1][1] > start + 0.01
    assert result.elbo[-1][1] == pytest.approx(values[-1][1], abs=0.05)
    for mean in (result.posterior.cell_mean, result.posterior.gene_mean):
        assert mean.mean(0).abs().max() < 1e-5


def test_minibatches_see_the_same_objective(counts):
    matrix, options = counts("negative_binomial")
    with pyro_sandbox(0, CPU):
        whole, parts = (CountProgram(matrix, replace(options, batch_size=size)) for size in (30, 10))
        parts.guide, parts.scales = whole.guide, whole.scales
        assert parts.batches.count == 3
        assert parts.elbo(400) == pytest.approx(whole.elbo(400), abs=0.01)


def test_given_scales_are_kept_and_the_others_learned(counts):
    matrix, options = counts("poisson")
    with pyro_sandbox(0, CPU):
        program = CountProgram(matrix, replace(options, prior_scales={"b": 0.4, "A": [2.0, 1.0]}))
        with torch.no_grad():
            before = program.scales()
        _optimise(program, 600, replace(options, max_epochs=3))
        with torch.no_grad():
            after = program.scales()
    assert float(after.b) == pytest.approx(0.4)
    assert after.A.tolist() == pytest.approx([2.0, 1.0])
    assert float(after.a) != float(before.a)
    assert (after.B != before.B).all()


@pytest.fixture
def adata():
    return lfm.datasets.simulate(30, 20, 2, likelihood="negative_binomial", mu=1.0)


def few_steps(adata, guide, **options):
    with pytest.warns(UserWarning, match="did not converge"):
        lfm.tl.fit(adata, 2, engine="pyro", guide=guide, max_epochs=3, progress=False, **options)


@pytest.mark.parametrize(
    ("which", "options"),
    [
        ("row_block", {"batch_size": 10}),
        ("low_rank", {}),
        pytest.param("mean_field", {}, marks=pytest.mark.slow),
        pytest.param("flow", {"batch_size": 10}, marks=pytest.mark.slow),
    ],
)
def test_a_fit_has_the_closed_forms_fields_and_the_same_bits_twice(adata, which, options):
    other = adata.copy()
    lfm.tl.fit(other, 2, progress=False, tol=1.0)
    fits = []
    for _ in range(2):
        fits.append(adata.copy())
        few_steps(fits[-1], which, **options)
    for container in ("obs", "var", "obsm", "varm"):
        assert set(getattr(fits[0], container)) == set(getattr(other, container))
    assert set(fits[0].uns["lfm"]) == set(other.uns["lfm"])
    assert fits[0].uns["lfm"]["params"]["guide"] == which
    for key in ("X_lfm", "lfm_cov"):
        np.testing.assert_array_equal(fits[0].obsm[key], fits[1].obsm[key])
    lfm.tl.anomalies(fits[0])
    lfm.tl.project(fits[0], other, key_added="new")


# guides of one's own


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


def test_a_guide_of_ones_own_runs_and_leaves_pyros_store_alone(adata, monkeypatch):
    monkeypatch.setattr(pyro_own_guide, "DRAWS", 50)
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


# against the closed form


def in_model_gauge(q):
    """The same posterior in the gauge of the program: priors without means and correlations, and A's scale 1."""
    cov = q.cell_prior.cov
    q = translate_genes(-torch.linalg.solve(cov[1:, 1:], cov[1:, 0])).posterior(q)
    cov = q.gene_prior.cov
    q = translate_cells(-torch.linalg.solve(cov[1:, 1:], cov[1:, 0])).posterior(q)
    q = balance(q.cell_prior.cov[1:, 1:], q.gene_prior.cov[1:, 1:]).posterior(q)
    q = shift_constants(q.cell_prior.mean[0], q.gene_prior.mean[0], q.n_factors).posterior(q)
    for prior in (q.cell_prior, q.gene_prior):
        torch.testing.assert_close(prior.mean, torch.zeros_like(prior.mean), atol=1e-6, rtol=0)
        torch.testing.assert_close(prior.cov, torch.diag(prior.cov.diagonal()), atol=1e-6, rtol=0)
    return q


def program_elbo(q, y, n_draws=2000):
    """ELBO of a stored posterior, by the program."""
    q = in_model_gauge(q)
    scales = [prior.cov.diagonal().sqrt() for prior in (q.cell_prior, q.gene_prior)]
    theta = 1 / q.noise.dispersion.clamp_min(1e-8)
    arguments = GuideParameters(
        torch.tensor(q.mu).double(),
        torch.tensor(0.01).double(),
        q.cell_mean,
        torch.linalg.cholesky(unpack(q.cell_cov.packed().double())),
        q.gene_mean,
        torch.linalg.cholesky(unpack(q.gene_cov.packed().double())),
    )
    program = partial(
        model,
        scales=Scales(*(part for both in scales for part in (both[0], both[1:])), theta=theta),
        likelihood=q.noise.likelihood,
        log_size=q.noise.log_size,
    )
    with pyro_sandbox(0, CPU), torch.no_grad():
        objective = Trace_ELBO(num_particles=50, max_plate_nesting=2, vectorize_particles=True)
        values = [-objective.loss(program, partial(guide, q=arguments), y) for _ in range(n_draws // 50)]
    return float(np.mean(values))


def moments_of_eta(q):
    u, v = extend(q.cell_mean), extend(q.gene_mean)
    S, T = unpack(q.cell_cov.packed().double()), unpack(q.gene_cov.packed().double())
    var = torch.einsum("ik,jkl,il->ij", u, T, u) + torch.einsum("jk,ikl,jl->ij", v, S, v)
    var += torch.einsum("ikl,jkl->ij", S[:, 1:, 1:], T[:, 1:, 1:])
    return q.mu + q.gene_mean[:, 0] + q.cell_mean @ v.T, var.sqrt()


def compare(name, closed, reference, y, rank0):
    """Print and return the root mean square difference in eta, in sd, and that of the ELBO, by gain."""
    (mean, sd), (ref_mean, ref_sd) = moments_of_eta(closed), moments_of_eta(reference)
    z, ratio = ((mean - ref_mean) / ref_sd).flatten(), (sd / ref_sd).flatten()
    values = [program_elbo(q, y) for q in (closed, reference)]
    gain = values[1] - rank0 * y.numel()
    print(
        f"\n{name}: eta closed - Pyro, in sd: rms {z.square().mean().sqrt():.3f}, mean {z.mean():+.3f}; sd closed / "
        f"Pyro: median {ratio.median():.3f}, 5-95 % {ratio.quantile(0.05):.3f}-{ratio.quantile(0.95):.3f}; "
        f"ELBO {values[0]:.1f} against {values[1]:.1f}, gain over no factors {gain:.1f}"
    )
    return float(z.square().mean().sqrt()), (values[0] - values[1]) / gain, ratio


def fit_program(matrix, options, theta=None):
    """The Pyro engine's fit; with theta (m,) held if it is given."""
    with pyro_sandbox(0, CPU):
        program = CountProgram(matrix, options)
        if theta is not None:
            program.scales.theta.data = theta.log()
            program.scales.theta.requires_grad_(False)
        values, converged = _optimise(program, np.prod(matrix.shape), options)
        return program.finish(Trace(values, program.rank0, converged))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "shape", "scales", "most_sd", "most_share"),
    [
        ("poisson", (80, 50), {}, 0.1, 0.005),
        ("negative_binomial", (80, 50), {"theta": 4.0}, 0.2, 0.01),
        # the rate that the closed form plugs in is crudest where the score bends most
        ("bernoulli", (80, 60), {"mu": -0.5, "factor_scales": [1.2, 0.9]}, 0.4, 0.03),
    ],
)
def test_closed_form_agrees_with_the_program(counts, likelihood, shape, scales, most_sd, most_share):
    matrix, options = counts(likelihood, *shape, **scales)
    closed = fit_natural_gradient(matrix, replace(options, tol=1e-5, max_epochs=200))
    # dispersions are held: the closed form shrinks them, the program takes those of highest ELBO
    theta = 1 / closed.posterior.noise.dispersion if likelihood == "negative_binomial" else None
    reference = fit_program(matrix, options, theta)
    assert reference.converged
    y = torch.from_numpy(matrix.stored()).double()
    rms, elbo, ratio = compare(likelihood, closed.posterior, reference.posterior, y, closed.elbo_rank0)
    assert rms < most_sd
    assert abs(elbo) < most_share
    assert 0.9 < ratio.median() < 1.1


@pytest.mark.slow
def test_learned_dispersions_change_eta_little(counts):
    matrix, options = counts("negative_binomial", 80, 50, theta=4.0)
    closed = fit_natural_gradient(matrix, replace(options, max_epochs=200))
    reference = fit_pyro(matrix, options)
    y = torch.from_numpy(matrix.stored()).double()
    rms, elbo, _ = compare("theta learned", closed.posterior, reference.posterior, y, closed.elbo_rank0)
    assert rms < 0.2
    # the program's own dispersions are those of highest ELBO
    assert -0.1 < elbo < 0.005
