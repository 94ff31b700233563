"""Dispersions: their scores, what they recover, and what they are where there is nothing to learn from."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch

import scvi_lfm as lfm
from scvi_lfm.inference.counts.dispersion import LEAST, MOST, update_dispersion
from scvi_lfm.inference.counts.state import CountStatistics
from scvi_lfm.model.likelihoods import negative_binomial as NB


def statistics(y, rate, phi):
    """CountStatistics at known rates: nothing was fitted, so no leverage."""
    y, rate, phi = (torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in (y, rate, phi))
    weight, _ = NB.weight_and_score(y, rate, phi)
    square = weight.square().mean(0)
    excess = phi * square + 2 * (1 + phi) * NB.dispersion_score(y, rate, phi) / len(y)
    nothing = torch.zeros(0)
    return CountStatistics(nothing, nothing, nothing, excess.float(), square.float())


def fixed_point(y, rate, start=0.1, rounds=25):
    """Half way on the log scale in every round, as the engine goes."""
    phi = np.full(y.shape[1], start)
    for _ in range(rounds):
        phi = np.sqrt(phi * update_dispersion(statistics(y, rate, phi), len(y)).numpy())
    return phi


def draw(rng, rate, theta):
    return rng.poisson(rate * rng.gamma(theta, 1 / theta, size=rate.shape)).astype(float)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_score_is_the_derivative_of_the_log_density(dtype):
    rng = np.random.default_rng(0)
    phi = torch.tensor([1e-4, 0.01, 0.3, 2.0, 50.0], dtype=torch.float64)
    rate = torch.from_numpy(rng.gamma(1, 3, (40, 5)))
    y = torch.from_numpy(rng.poisson(rate.numpy()).clip(max=6).astype(float))
    free = phi.clone().requires_grad_()
    (expected,) = torch.autograd.grad(NB.log_density(y, rate, free).sum(), free)
    found = NB.dispersion_score(y.to(dtype), rate.to(dtype), phi.to(dtype))
    # of terms about rate^2 / 2 in size, which cancel; beyond the third gene, some counts pass the bound
    size = rate.square().sum(0) / 2
    assert ((found - expected).abs() / size)[:3].max() < 2e-3


def by_sums(y, rate, phi):
    """The score in float64, molecule by molecule, and the size of the terms that cancel in it, of each entry."""
    y, rate, phi = y.double(), rate.double(), phi.double()
    x, molecule = rate * phi, torch.arange(y.max() + 1, dtype=torch.float64)[:, None]
    before = torch.nn.functional.pad((molecule / (1 + phi * molecule)).cumsum(0), (0, 0, 1, 0))
    pairs = before.gather(0, y.long())
    zero = (torch.log1p(x) - x / (1 + x)) / phi.square()
    score = pairs + zero - y * rate / (1 + x)
    return torch.where(y > 0, torch.minimum(score, NB.MOST_SCORE / phi), score), pairs + zero + y * rate / (1 + x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("phi", [1e-4, 0.01, 0.3, 2.0, 100.0])
def test_the_score_is_that_of_sums_over_molecules(dtype, phi):
    """Each count as a gene of its own, on either side of those that a table holds, at rates from far off to its own."""
    y = torch.tensor([0, 1, 2, 3, 10, NB.LOOKED_UP - 1, NB.LOOKED_UP, NB.LOOKED_UP + 1, 1e3, 2e4], dtype=dtype)
    for share in (1e-4, 0.1, 0.9, 1.0, 1.1, 3.0):
        rate, phis = share * y.clamp_min(0.1), torch.full_like(y, phi)
        found = NB.dispersion_score(y[None], rate[None], phis)
        expected, terms = (part[0] for part in by_sums(y[None], rate[None], phis))
        # a float64 damping, which is 1 where the rate is small, changes them by their slope, at most (y + rate) / phi,
        # and a digamma function, of about 10, is one of float64 too
        rounding = torch.finfo(torch.float64).eps * ((y + rate).double() / phi + 10 / phi**2)
        rounding += torch.finfo(dtype).eps * terms
        assert ((found - expected).abs() <= 8 * rounding).all()


@pytest.mark.parametrize("phi", [1e-3, 0.01, 0.2, 3.0, 50.0])
def test_the_score_of_many_cells_is_right_to_a_small_part_of_its_spread(phi):
    """In float32, at the rates of abundant and of rare genes."""
    rng = np.random.default_rng(0)
    rate = torch.from_numpy(rng.gamma(2, 0.5, (1000, 200)) * rng.lognormal(-2, 2.5, 200)).float()
    y, phis = torch.from_numpy(draw(rng, rate.double().numpy(), 1 / phi)).float(), torch.full((200,), phi)
    assert (y > NB.LOOKED_UP).any()
    expected = by_sums(y, rate, phis)[0].sum(0)
    # what the pairs of molecules know
    spread = (NB.weight_and_score(y, rate, phis)[0].double().square().sum(0) / 2).sqrt() / (1 + phi)
    # were all of a thousand roundings of one sign: up to a tenth of it, over seeds
    bound = 1000**0.5 * torch.finfo(torch.float32).eps * 10 * (1 / phi + phi)
    assert ((NB.dispersion_score(y, rate, phis) - expected).abs() / spread).max() < bound


@pytest.mark.parametrize("n_cells", [1, 3])
def test_what_cancels_keeps_its_digits(n_cells):
    """log(1 + x) - x / (1 + x) in float32, of genes on either side of where the series ends."""
    x = torch.logspace(-6, 3, 3001)[None] * torch.tensor([1.0, 0.9, 1.1])[:n_cells, None]
    exact = torch.log1p(x.double()) - x.double() / (1 + x.double())
    found = NB._log_beyond(x)
    # a handful of roundings, and less than one for the terms that the series leaves out
    assert ((found - exact) / exact).abs().max() < 8 * torch.finfo(torch.float32).eps


def test_an_odd_count_says_no_more_than_the_bound():
    rate, phi = torch.ones(50, 3).double(), torch.tensor([0.05, 0.5, 5.0]).double()
    y = torch.ones(50, 3).double()
    before = NB.dispersion_score(y, rate, phi)
    last = NB.dispersion_score(y[:1], rate[:1], phi)
    y[0] = 1e6
    odd = NB.dispersion_score(y, rate, phi)
    torch.testing.assert_close(odd - (before - last), NB.MOST_SCORE / phi, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("phi", [1e-3, 0.1, 0.3])
def test_at_the_true_dispersion_nothing_pulls(rate, phi):
    """The expected score, summed over all counts, is zero but for what the bound takes from rare ones."""
    y = torch.arange(3000.0, dtype=torch.float64)
    probability = scipy.stats.nbinom.pmf(y.numpy(), 1 / phi, 1 / (1 + phi * rate))
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    # each count as a gene of its own
    scores = NB.dispersion_score(y[None], torch.full_like(y, rate)[None], torch.full_like(y, phi)).numpy()
    information = (probability * scores**2).sum()
    assert abs((probability * scores).sum()) < 0.03 * np.sqrt(information)


def test_is_the_posterior_mean_under_a_learned_log_normal():
    """The estimate again, on a fine grid and with EM run to its end."""
    rng = np.random.default_rng(0)
    phi = np.exp(rng.normal(-1, 0.8, 300))
    rate = rng.gamma(2, 2, size=(300, 300))
    s = statistics(draw(rng, rate, 1 / phi), rate, phi)
    found = np.log(update_dispersion(s, 300).numpy())
    known, excess = 300 * s.square.double().numpy(), 300 * s.excess.double().numpy()
    pairs = np.maximum(known + excess, 0) / 2
    grid = np.linspace(np.log(1e-4), np.log(1e2), 800)
    evidence = pairs[:, None] * np.log1p(np.exp(grid)) - known[:, None] / 2 * np.exp(grid)
    centre, spread = np.log(0.2), 1.5
    for _ in range(100):
        share = evidence - 0.5 * ((grid - centre) / spread) ** 2
        share = np.exp(share - share.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        centre = (share @ grid).mean()
        spread = np.sqrt((share @ (grid - centre) ** 2).mean())
    np.testing.assert_allclose(found, share @ grid, atol=0.03)
    assert centre == pytest.approx(-1, abs=0.15)
    assert spread == pytest.approx(0.8, abs=0.15)


def test_is_recovered_where_rates_are_known_and_depth_is_ample():
    rng = np.random.default_rng(1)
    theta = np.geomspace(0.3, 30, 60)
    rate = rng.gamma(4, 5, size=(2000, 60))
    y = draw(rng, rate, theta)
    found = fixed_point(y, rate)
    # 2,000 counts of about 20 know log theta to about 0.05
    error = np.log(found) + np.log(theta)
    assert np.sqrt(np.mean(error**2)) < 0.07
    assert np.abs(error).max() < 0.25
    np.testing.assert_allclose(fixed_point(y, rate, start=5.0), found, rtol=0.05)


def test_lies_between_the_points_of_the_grid():
    """Where much is known, genes that differ by a tenth do not get one value."""
    rng = np.random.default_rng(2)
    theta = np.geomspace(2, 3, 5)
    rate = np.full((20_000, 5), 10.0)
    found = fixed_point(draw(rng, rate, theta), rate, rounds=15)
    np.testing.assert_allclose(found * theta, 1, atol=0.05)
    assert (np.diff(found) < 0).all()


def test_is_the_poissons_where_counts_are():
    rng = np.random.default_rng(2)
    rate = rng.gamma(4, 5, size=(1000, 60))
    found = fixed_point(rng.poisson(rate).astype(float), rate)
    assert np.isfinite(found).all()
    assert ((found >= LEAST) & (found < 5e-3)).all()


def test_rare_genes_take_the_dispersion_of_the_others():
    rng = np.random.default_rng(3)
    rate = np.repeat([20.0, 1e-3, 1e-9], [60, 5, 5]) * rng.gamma(5, 0.2, size=(1000, 70))
    found = fixed_point(draw(rng, rate, 2), rate)
    np.testing.assert_allclose(found[:60], 0.5, rtol=0.3)
    np.testing.assert_allclose(found[60:], np.exp(np.log(found[:60]).mean()), rtol=0.3)


@pytest.mark.parametrize("excess", [0.0, -1e6, 1e30])
@pytest.mark.parametrize("square", [0.0, 1e-30, 1e12])
def test_is_always_a_dispersion(excess, square):
    nothing = torch.zeros(0)
    found = update_dispersion(
        CountStatistics(nothing, nothing, nothing, torch.full((4,), excess), torch.full((4,), square)), 100
    )
    assert found.isfinite().all()
    assert ((found >= LEAST) & (found <= MOST * 1.0001)).all()


def fitted_theta(n, m, theta, seed=0, **options):
    adata = lfm.datasets.simulate(
        n, m, 3, likelihood="negative_binomial", mu=1.5, theta=theta, factor_scales=[0.6, 0.45, 0.35], rng=seed
    )
    lfm.tl.fit(adata, 3, progress=False, **options)
    return np.log(adata.var["lfm_theta"].to_numpy() / theta)


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 100])
def test_is_recovered_by_a_fit(batch_size):
    theta = np.random.default_rng(0).permutation(np.geomspace(0.3, 30, 100))
    error = fitted_theta(400, 100, theta, batch_size=batch_size)
    # measured: 0.27 and 0.25; the standard error of 400 counts is about 0.2
    assert np.sqrt(np.mean(error**2)) < 0.33
    assert abs(error.mean()) < 0.1
    assert np.corrcoef(error, np.log(theta))[0, 1] > -0.8


@pytest.mark.slow
def test_is_recovered_by_a_fit_at_scale():
    theta = np.random.default_rng(0).permutation(np.geomspace(0.3, 30, 400))
    error = fitted_theta(4000, 400, theta)
    assert np.sqrt(np.mean(error**2)) < 0.12
    assert abs(error.mean()) < 0.05
    for part in (theta < 1, (theta > 1) & (theta < 10), theta > 10):
        assert abs(error[part].mean()) < 0.08


def poisson_fits(n, m, mu, seed, scale, batch_size):
    adata = lfm.datasets.simulate(
        n, m, 3, likelihood="poisson", mu=mu, cell_scale=0.3, depth_spread=0.3, rng=seed,
        factor_scales=scale / np.sqrt([1, 2, 3]),
    )  # fmt: skip
    fits = {}
    for likelihood in ("poisson", "negative_binomial"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* are all zero")
            fits[likelihood] = lfm.tl.fit(
                adata, 3, likelihood=likelihood, batch_size=batch_size, progress=False, copy=True
            ).uns["lfm"]
    return fits["poisson"]["elbo"], fits["negative_binomial"]


@pytest.mark.parametrize(
    ("seed", "batch_size"),
    [
        case if case == (1, 50) else pytest.param(*case, marks=pytest.mark.slow)
        for case in product(range(4), (None, 50))
    ],
)
def test_a_genes_loadings_and_its_dispersion_do_not_swing(seed, batch_size):
    """Poisson counts of strong factors: full steps of the dispersion went back and forth here, and never converged."""
    poisson, other = poisson_fits(200, 70, 1.0, seed, 0.8, batch_size)
    assert other["converged"]
    gain = poisson["value"][-1] - poisson["rank0"]
    # as good as if it had been known that there is no dispersion
    assert other["elbo"]["value"][-1] > poisson["value"][-1] - 0.01 * gain


def test_a_gene_that_would_swing_for_ever_comes_to_rest():
    """Three huge counts in few cells: in half steps their dispersions and loadings answered each other without end."""
    adata = lfm.datasets.simulate(100, 60, 2, likelihood="negative_binomial", mu=0.3)
    values = adata.to_df().to_numpy(copy=True)
    values[[3, 40, 77], [5, 21, 48]] += 12 + 3 * values.max()
    adata.X = values
    lfm.tl.fit(adata, 2, progress=False)
    assert adata.uns["lfm"]["elbo"]["epoch"][-1] < 50
