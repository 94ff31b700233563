"""The Pyro engine for counts, and the closed form held against it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

import scvi_lfm as lfm
from scvi_lfm._context import pyro_sandbox
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference import fit_natural_gradient
from scvi_lfm.inference.pyro.counts import CountProgram
from scvi_lfm.inference.pyro.loop import climb, fit_pyro
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


@pytest.mark.half_slow
@pytest.mark.parametrize(
    ("likelihood", "which"),
    [("negative_binomial", which) for which in GUIDES] + [("poisson", "row_block"), ("bernoulli", "row_block")],
)
def test_every_guide_and_every_likelihood_gain(counts, likelihood, which):
    matrix, options = counts(likelihood)
    with pyro_sandbox(0, CPU):
        program = CountProgram(matrix, replace(options, guide=which))
        start = program.elbo(200)
        trace = climb(program, 600, replace(options, max_epochs=60, guide=which))
        result = program.finish(trace)
    assert result.elbo[-1][1] > start + 0.01
    assert result.elbo[-1][1] == pytest.approx(trace.values[-1][1], abs=0.05)
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
        climb(program, 600, replace(options, max_epochs=3))
        with torch.no_grad():
            after = program.scales()
    assert float(after.b) == pytest.approx(0.4)
    assert after.A.tolist() == pytest.approx([2.0, 1.0])
    assert float(after.a) != float(before.a)
    assert (after.B != before.B).all()


@pytest.mark.parametrize(
    ("which", "options"),
    [
        ("row_block", {"batch_size": 10}),
        pytest.param("low_rank", {}, marks=pytest.mark.slow),
        pytest.param("mean_field", {}, marks=pytest.mark.slow),
        pytest.param("flow", {"batch_size": 10}, marks=pytest.mark.slow),
    ],
)
def test_a_fit_has_the_closed_forms_fields_and_the_same_bits_twice(adata, few_steps, which, options):
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
        return program.finish(climb(program, np.prod(matrix.shape), options))


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
