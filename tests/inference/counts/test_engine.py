"""The engine as a whole: its recorded objective, what it recovers, and data that are hard on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import scvi_lfm as lfm
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference import fit_natural_gradient
from scvi_lfm.inference.counts import engine as engine_module
from scvi_lfm.inference.counts.engine import CountEngine
from scvi_lfm.inference.counts.first_epoch import stochastic_step
from scvi_lfm.inference.counts.objective import draws_and_log_dets, elbo_per_entry, log_densities
from scvi_lfm.inference.counts.start import add_factors
from scvi_lfm.inference.counts.state import Cells, CountGlobals
from scvi_lfm.inference.progress import show_progress
from scvi_lfm.linalg.covariances import Packed
from scvi_lfm.model import PriorScales
from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.posterior.recomputed import Recomputed

FAMILIES = ["row_block", "mean_field"]
MOSTLY_SLOW = ["negative_binomial", *(pytest.param(name, marks=pytest.mark.slow) for name in ("poisson", "bernoulli"))]
# a tolerance that no fit reaches: run to max_epochs
NEVER = 1e-300


def simulate(n=150, m=80, r=2, likelihood="negative_binomial", *, seed=0, mu=0.8, scale=0.7, **options):
    """Counts of which every factor can be told from noise."""
    scales = scale / np.sqrt(np.arange(1, r + 1))
    adata = lfm.datasets.simulate(
        n, m, r, likelihood=likelihood, mu=mu, factor_scales=scales, depth_spread=0.3, rng=seed, **options
    )
    adata.X = adata.X.toarray()
    return adata


def eta_of(q):
    """Expected eta, the size factor included."""
    eta = q.mu + q.cell_mean[:, :1] + q.gene_mean[:, 0] + q.cell_mean[:, 1:] @ q.gene_mean[:, 1:].T
    return (eta + q.noise.log_size[:, None]).numpy()


def fit(values, options, **changes):
    return fit_natural_gradient(CellMatrix.of(values), options(values, **changes))


# the recorded objective


def run_epochs(values, options, n_epochs):
    """The state after some epochs, the ELBO at each, and what is needed to measure it again."""
    engine = CountEngine(CellMatrix.of(values), options)
    state, rank0 = engine.start()
    trace = []
    with show_progress(n_epochs, shown=False) as bar:
        for number in range(1, n_epochs + 1):
            state, recorded = engine.epoch(state, number, bar)
            trace += recorded
    return engine, state, np.array(trace), rank0


def noise_of_the_elbo(engine, state):
    """Standard deviation of the estimate over seeds."""
    g, cells, priors = state.globals, state.cells, (state.globals.cell_prior, state.globals.gene_prior)
    sizes = engine._some
    some = cells.rows(torch.from_numpy(sizes))
    return np.std([elbo_per_entry(engine._problem, g, some, priors, engine._all.sample, seed) for seed in range(6)])


@pytest.mark.usefixtures("fewer_entries")
@pytest.mark.parametrize("batch_size", [150, 50])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", MOSTLY_SLOW)
@pytest.mark.half_slow
def test_the_elbo_does_not_drop_by_more_than_its_noise(count_options, likelihood, family, batch_size):
    values = simulate(likelihood=likelihood).X
    options = count_options(values, n_factors=2, likelihood=likelihood, family=family, batch_size=batch_size)
    engine, state, trace, rank0 = run_epochs(values, options, 10)
    noise = noise_of_the_elbo(engine, state)
    assert engine.n_batches == -(-150 // batch_size)
    # the same random numbers at every epoch: far less of it is left in a difference
    assert np.diff(trace).min() > -noise
    assert trace[-1] > trace.max() - noise
    # and what the factors gain stands out of it
    assert trace[-1] - rank0 > 10 * noise


@pytest.mark.usefixtures("fewer_entries")
@pytest.mark.slow
@pytest.mark.parametrize("likelihood", COUNTS)
def test_batches_of_any_size_reach_the_same_elbo(count_options, likelihood):
    """Within 1 % of what the factors gain."""
    values = simulate(240, 60, likelihood=likelihood).X
    results = {
        size: fit(values, count_options, n_factors=2, likelihood=likelihood, batch_size=size, tol=1e-3, max_epochs=20)
        for size in (1000, 240, 100, 40)
    }
    whole = results[240]
    assert results[1000].elbo == whole.elbo
    gain = whole.elbo[-1][1] - whole.elbo_rank0
    for result in results.values():
        assert result.elbo_rank0 == pytest.approx(whole.elbo_rank0, abs=1e-4 * gain)
        assert abs(result.elbo[-1][1] - whole.elbo[-1][1]) < 0.01 * gain
        assert np.corrcoef(eta_of(result.posterior).ravel(), eta_of(whole.posterior).ravel())[0, 1] > 0.995


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.half_slow
def test_the_last_elbo_is_that_of_the_stored_posterior(count_options, likelihood, family):
    """In the stored gauge, with its general priors."""
    values = simulate(60, 40, likelihood=likelihood).X
    options = count_options(values, n_factors=2, likelihood=likelihood, family=family, max_epochs=3, tol=NEVER)
    engine = CountEngine(CellMatrix.of(values), options)
    result = fit_natural_gradient(CellMatrix.of(values), options)
    q = result.posterior
    divergence = 0.5 * (q.mu / 100) ** 2
    one = torch.ones((), dtype=torch.float64)
    for means, cov, prior in ((q.cell_mean, q.cell_cov, q.cell_prior), (q.gene_mean, q.gene_cov, q.gene_prior)):
        rows, columns = np.tril_indices(3)
        full = torch.zeros(len(means), 3, 3, dtype=torch.float64)
        full[:, rows, columns] = full[:, columns, rows] = cov.values.double()
        kl = kl_divergence(MultivariateNormal(means, full), MultivariateNormal(prior.mean, prior.cov))
        divergence += float(kl.sum())
    g = CountGlobals(
        one * q.mu,
        q.gene_mean.float(),
        PriorScales(one, one.expand(2), one, one.expand(2)),
        q.gene_cov.values.float(),
        q.noise.dispersion.float(),
    )
    cells = Cells(q.cell_mean.float(), q.cell_cov.values.float(), q.noise.log_size.float())
    engine.start()
    # the same random numbers, and the divergences written out anew
    generator = torch.Generator().manual_seed(options.seed)
    draws = [draws_and_log_dets(cov, generator)[0] for cov in (cells.cov, g.gene_cov)]
    sample = engine._all.sample
    data = float((log_densities(engine._problem, g, cells, sample, *draws) @ sample.weight).mean())
    assert result.elbo[-1][1] == pytest.approx(data - divergence / values.size, rel=1e-5)


def test_one_mark_for_each_epoch_and_the_stored_one(count_options):
    values = simulate(60, 40).X
    for batch_size in (60, 20):
        result = fit(values, count_options, n_factors=2, batch_size=batch_size, max_epochs=3, tol=NEVER)
        assert [epoch for epoch, _ in result.elbo] == [1, 2, 3, 3]
        assert not result.converged


@pytest.mark.parametrize("batch_size", [150, 50])
@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.half_slow
def test_same_seed_same_bits_and_another_seed_others(count_options, likelihood, batch_size):
    values = simulate(likelihood=likelihood).X
    options = {"n_factors": 2, "likelihood": likelihood, "batch_size": batch_size, "max_epochs": 1, "tol": NEVER}
    first, again, other = (fit(values, count_options, seed=seed, **options) for seed in (4, 4, 5))
    for name in ("cell_mean", "gene_mean"):
        assert torch.equal(getattr(first.posterior, name), getattr(again.posterior, name))
        assert not torch.equal(getattr(first.posterior, name), getattr(other.posterior, name))
    assert torch.equal(first.posterior.cell_cov.values, again.posterior.cell_cov.values)
    assert torch.equal(first.posterior.gene_cov.values, again.posterior.gene_cov.values)
    assert torch.equal(first.posterior.noise.dispersion, again.posterior.noise.dispersion)
    assert first.elbo == again.elbo
    assert first.elbo != other.elbo
    assert np.corrcoef(eta_of(first.posterior).ravel(), eta_of(other.posterior).ravel())[0, 1] > 0.99


def test_the_start_takes_cells_from_all_over_the_file(count_options, monkeypatch):
    """A file may be sorted: genes of the types at its end must not begin without loadings."""
    values = simulate(90, 40).X
    log_size = np.linspace(-0.4, 0.4, 90)
    seen = []

    def add(problem, g, factors, batch, activity, scales):
        seen.append((batch.dense(), activity.log_size, len(factors)))
        return add_factors(problem, g, factors, batch, activity, scales)

    monkeypatch.setattr(engine_module, "add_factors", add)
    engine = CountEngine(CellMatrix.of(values), count_options(values, n_factors=2, batch_size=30, log_size=log_size))
    state, _ = engine.start()
    (y, sizes, n), rows = seen[0], np.arange(0, 90, 3)
    assert n == 30
    np.testing.assert_array_equal(y, values[rows])
    np.testing.assert_allclose(sizes, log_size[rows], rtol=1e-6)
    # activities are those of the cells that they are given to
    excess = np.log(values.sum(1)) - log_size
    assert np.corrcoef(state.cells.mean[:, 0], excess)[0, 1] > 0.75  # measured over seeds: 0.91 to 0.97


def test_a_minibatch_moves_no_cell_that_is_not_in_it(count_options):
    values = simulate(90, 40).X
    engine = CountEngine(CellMatrix.of(values), count_options(values, n_factors=2, batch_size=30))
    state, _ = engine.start()
    rows, batch = next(engine._batches.numbered_epoch())
    others = torch.from_numpy(np.setdiff1d(np.arange(90), rows))
    before = state.cells.mean.clone(), state.cells.cov.clone()
    moved = stochastic_step(engine._problem, state.running, batch, state.cells.rows(rows), 1)
    after = state.after(moved[0], state.cells.put(rows, moved[1]))
    for old, new in zip(before, (after.cells.mean, after.cells.cov), strict=True):
        assert torch.equal(new[others], old[others])
        assert not torch.equal(new[rows], old[rows])
    assert not torch.equal(after.globals.gene_mean, state.globals.gene_mean)


# what is recovered


# measured over seeds, for the Poisson: 0.991 to 0.995
RECOVERED = {
    "negative_binomial": ({"theta": 3.0}, 0.975, 0.95),
    "poisson": ({}, 0.985, 0.95),
    "bernoulli": ({"mu": -0.5}, 0.93, 0.8),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [300, 100])
@pytest.mark.parametrize("likelihood", RECOVERED)
@pytest.mark.half_slow
def test_factors_are_recovered(count_options, true_eta, likelihood, batch_size, family):
    options, least, least_cosine = RECOVERED[likelihood]
    adata = simulate(300, 100, 3, likelihood, **options)
    result = fit(adata.X, count_options, likelihood=likelihood, batch_size=batch_size, family=family, tol=5e-3)
    q, truth = result.posterior, true_eta(adata) + np.log(adata.obs["size_factor"].to_numpy())[:, None]
    found = eta_of(q)
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > least
    interaction = adata.obsm["A"] @ adata.varm["B"].T
    interaction += interaction.mean() - interaction.mean(0) - interaction.mean(1)[:, None]
    product = (q.cell_mean[:, 1:] @ q.gene_mean[:, 1:].T).numpy()
    assert np.corrcoef(interaction.ravel(), product.ravel())[0, 1] > least - 0.07
    # the planes of the true and of the found factors are one, as far as noise lets them
    planes = [np.linalg.qr(part - part.mean(0))[0] for part in (adata.obsm["A"], q.cell_mean[:, 1:].numpy())]
    cosines = np.linalg.svd(planes[0].T @ planes[1])[1]
    assert cosines.min() > least_cosine


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
@pytest.mark.parametrize("batch_size", [300, 100])
@pytest.mark.half_slow
def test_factors_that_the_data_do_not_need_come_to_nothing(count_options, likelihood, batch_size):
    values = simulate(300, 120, 2, likelihood, scale=0.8).X
    result = fit(values, count_options, n_factors=6, likelihood=likelihood, batch_size=batch_size, tol=5e-3)
    share = np.array(result.variance_ratio)
    assert (share[:2] > 0.1).all()
    assert share[2:].sum() < 0.03


@pytest.mark.usefixtures("fewer_entries")
@pytest.mark.parametrize("batch_size", [pytest.param(200, marks=pytest.mark.slow), 100])
def test_and_are_off_in_time(count_options, batch_size):
    values = simulate(200, 100, 2, scale=0.8).X
    result = fit(values, count_options, n_factors=6, batch_size=batch_size, tol=NEVER, max_epochs=20)
    assert result.posterior.n_factors <= 3
    assert len(result.variance_ratio) == result.posterior.n_factors
    assert np.array(result.variance_ratio)[:2].sum() > 0.99


@pytest.mark.parametrize("likelihood", ["negative_binomial", pytest.param("poisson", marks=pytest.mark.slow)])
def test_noise_has_no_factors(count_options, likelihood):
    values = np.random.default_rng(0).poisson(1.0, (150, 80)).astype(np.float32)
    result = fit(values, count_options, n_factors=4, likelihood=likelihood, tol=NEVER, max_epochs=20)
    q = result.posterior
    # measured over seeds: none, or one that is on its way out
    assert q.n_factors <= 2
    # without priors, the first factor would have the largest singular value of noise
    assert float((q.cell_mean[:, 1:] @ q.gene_mean[:, 1:].T).std()) < 0.6 * (150**-0.5 + 80**-0.5)
    # five standard errors of the mean count
    assert abs(q.mu - np.log(values.mean())) < 5 / np.sqrt(values.size)


@pytest.mark.parametrize("likelihood", COUNTS)
@pytest.mark.parametrize("batch_size", [150, 50])
@pytest.mark.half_slow
def test_without_factors_it_is_the_model_of_margins(count_options, likelihood, batch_size):
    adata = simulate(150, 60, likelihood=likelihood, scale=1e-9)
    options = {"likelihood": likelihood, "batch_size": batch_size, "max_epochs": 4, "tol": NEVER}
    result = fit(adata.X, count_options, n_factors=0, **options)
    q = result.posterior
    assert q.n_factors == 0
    assert q.cell_mean.shape == (150, 1)
    assert np.corrcoef(q.gene_mean[:, 0], adata.var["b"])[0, 1] > (0.95 if likelihood == "bernoulli" else 0.98)
    assert result.elbo[-1][1] == pytest.approx(result.elbo_rank0, abs=0.03)


def test_fixed_scales_stay_where_they_are(count_options):
    values = simulate().X
    given = {"a": 0.2, "A": [1.0, 2.0], "b": 0.8, "B": 0.4}
    options = count_options(values, n_factors=2, prior_scales=given)
    _, state, _, _ = run_epochs(values, options, 3)
    scales = state.globals.scales
    assert (float(scales.a), scales.A.tolist(), float(scales.b), scales.B.tolist()) == (0.2, [1, 2], 0.8, [0.4, 0.4])
    learned = run_epochs(values, count_options(values, n_factors=2), 3)[1].globals.scales
    assert learned.A.tolist() == [1, 1]
    assert float(learned.a) != pytest.approx(0.2)
    # relevance: the first factor is the larger one
    assert learned.B[0] > learned.B[1] > 0.01


# memory


@pytest.mark.parametrize("batch_size", [pytest.param(150, marks=pytest.mark.slow), 50])
def test_covariances_that_are_not_kept_change_little(count_options, monkeypatch, batch_size):
    values = simulate().X
    full = fit(values, count_options, n_factors=2, batch_size=batch_size, tol=1e-3)
    monkeypatch.setattr(lfm.settings, "_max_cov_bytes", 0)
    lean = fit(values, count_options, n_factors=2, batch_size=batch_size, tol=1e-3)
    monkeypatch.undo()
    assert isinstance(full.posterior.cell_cov, Packed)
    assert isinstance(lean.posterior.cell_cov, Recomputed)
    gain = full.elbo[-1][1] - full.elbo_rank0
    assert lean.elbo[-1][1] == pytest.approx(full.elbo[-1][1], abs=0.01 * gain)
    sd = full.posterior.cell_cov.diagonals().sqrt()
    # of two loadings of like size and unlike sign, rounding says which is the largest, and with it a factor's sign
    signs = (lean.posterior.cell_mean * full.posterior.cell_mean).sum(0).sign()
    assert ((signs * lean.posterior.cell_mean - full.posterior.cell_mean).abs() / sd).max() < 0.5
    torch.testing.assert_close(lean.posterior.cell_cov.diagonals().sqrt(), sd, rtol=0.1, atol=0)


# data that are hard on it


def half_in_one_gene(values, rng):
    values[:, 7] = rng.poisson(values.sum(1))
    return values


def almost_all_in_one_gene(values, rng):
    values[:, 7] = rng.poisson(100 * values.sum(1) + 1)
    return values


def one_count_of_a_gene(values, rng):
    values[:, 7] = 0
    values[3, 7] = 1
    return values


def genes_without_counts(values, rng):
    values[:, [5, 6]] = 0
    return values


def a_cell_of_a_hundredfold_depth(values, rng):
    values[3] *= 100
    return values


HARD = [
    half_in_one_gene,
    almost_all_in_one_gene,
    one_count_of_a_gene,
    genes_without_counts,
    a_cell_of_a_hundredfold_depth,
]


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
@pytest.mark.parametrize("data", HARD)
@pytest.mark.half_slow
def test_hard_data_are_fitted(count_options, data, likelihood):
    values = data(simulate(120, 60).X, np.random.default_rng(0))
    result = fit(values, count_options, n_factors=2, likelihood=likelihood, tol=5e-3)
    q = result.posterior
    for part in (q.cell_mean, q.gene_mean, q.cell_cov.values, q.gene_cov.values, q.noise.dispersion):
        assert part.isfinite().all()
    assert (q.cell_cov.diagonals() > 0).all()
    assert (q.gene_cov.diagonals() > 0).all()
    assert result.elbo[-1][1] > result.elbo_rank0
    # each gene's total is about what it was, with the weight that the likelihood gives to a count
    seen, more = values.sum(0) > 0, values.sum(0) > 1
    rates = np.exp(eta_of(q))
    weight = 1 / (1 + q.noise.dispersion.numpy() * (likelihood == "negative_binomial") * rates)
    found, wanted = (weight * rates).sum(0)[more], (weight * values).sum(0)[more]
    np.testing.assert_allclose(np.log(found), np.log(wanted), atol=0.5)
    if not seen.all():
        assert (q.gene_mean[~seen, 0] < q.gene_mean[seen, 0].min()).all()
        assert (q.gene_mean[~seen, 1:].norm(dim=1) < q.gene_mean[seen, 1:].norm(dim=1).median()).all()


@pytest.mark.parametrize("batch_size", [120, pytest.param(40, marks=pytest.mark.slow)])
def test_genes_that_are_always_or_never_present_are_fitted(count_options, batch_size):
    values = simulate(120, 60, likelihood="bernoulli", mu=-0.3).X
    values[:, 3], values[:, 4], values[:, 5], values[:, 6] = 1, 0, 0, 1
    values[7, 5], values[8, 6] = 1, 0
    result = fit(values, count_options, n_factors=2, likelihood="bernoulli", batch_size=batch_size, tol=5e-3)
    q = result.posterior
    assert q.gene_mean.isfinite().all()
    assert q.cell_mean.isfinite().all()
    b = q.gene_mean[:, 0].numpy()
    # of the others, those that are present and absent in a tenth of the cells at the least
    ordinary = (values.mean(0) >= 0.1) & (values.mean(0) <= 0.9)
    assert b[ordinary].max() < b[6] < b[3]
    assert b[4] < b[5] < b[ordinary].min()


def test_fewer_cells_than_a_batch_and_few_genes(count_options):
    values = np.random.default_rng(1).poisson(2.0, (6, 5)).astype(np.float32) + 1
    result = fit(values, count_options, n_factors=2, batch_size=512, tol=0.01)
    assert result.posterior.cell_mean.isfinite().all()
    assert result.posterior.cell_mean.shape[0] == 6


A_FEW_STEPS = {"n_factors": 2, "max_epochs": 3, "tol": NEVER, "batch_size": 40}


@pytest.fixture(scope="module")
def in_one_form(count_options):
    """Counts, and what a fit makes of them."""
    values = simulate(80, 40).X.clip(max=250)
    return values, fit(values, count_options, **A_FEW_STEPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
@pytest.mark.half_slow
def test_the_form_of_the_values_does_not_matter(in_one_form, count_options, form, dtype):
    values, expected = in_one_form
    found = fit(form(values.astype(dtype)), count_options, **A_FEW_STEPS)
    # products of sparse and dense matrices sum in another order
    sd = expected.posterior.cell_cov.diagonals().sqrt()
    assert ((found.posterior.cell_mean - expected.posterior.cell_mean).abs() / sd).max() < 0.05
    assert found.elbo[-1][1] == pytest.approx(expected.elbo[-1][1], abs=1e-3)


def test_a_common_size_factor_goes_into_mu(count_options):
    """Depths are relative: ten times all of them is a tenth of the rates."""
    values = simulate(100, 50).X
    base = count_options(values, n_factors=2, max_epochs=4, tol=NEVER)
    one = fit_natural_gradient(CellMatrix.of(values), base).posterior
    ten = fit_natural_gradient(CellMatrix.of(values), replace(base, log_size=base.log_size + np.log(10))).posterior
    assert ten.mu == pytest.approx(one.mu - np.log(10), abs=1e-2)
    assert np.abs(eta_of(one) - eta_of(ten)).max() < 0.1
    assert (ten.cell_mean[:, 1:].abs() - one.cell_mean[:, 1:].abs()).abs().max() < 0.3


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [400, 100])
@pytest.mark.parametrize("likelihood", COUNTS)
def test_cuda_gives_the_cpus_answer(count_options, likelihood, batch_size):
    """Eta agrees to a fiftieth of its posterior standard deviation, the ELBO per entry to 1e-3."""
    values = simulate(400, 200, 3, likelihood).X
    options = {"likelihood": likelihood, "batch_size": batch_size, "max_epochs": 5, "tol": NEVER}
    cpu, cuda = (fit(values, count_options, device=torch.device(name), **options) for name in ("cpu", "cuda"))
    on_host = replace(
        cuda.posterior,
        cell_mean=cuda.posterior.cell_mean.cpu(),
        gene_mean=cuda.posterior.gene_mean.cpu(),
        noise=replace(cuda.posterior.noise, log_size=cuda.posterior.noise.log_size.cpu()),
    )
    sd = float(cpu.posterior.cell_cov.diagonals()[:, 0].sqrt().median())
    assert np.abs(eta_of(on_host) - eta_of(cpu.posterior)).mean() < sd / 50
    assert cuda.elbo[-1][1] == pytest.approx(cpu.elbo[-1][1], abs=1e-3)
