from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats

import scvi_lfm as lfm
from scvi_lfm.datasets import _simulate as simulation
from scvi_lfm.model.likelihoods import COUNTS
from simulated import true_eta


def residuals(adata: ad.AnnData) -> np.ndarray:
    return (adata.X - true_eta(adata)) / adata.var["sigma"].to_numpy()


def law(adata: ad.AnnData, likelihood: str) -> tuple[np.ndarray, ...]:
    """Mean, variance and variance of the squared deviation of every count, from the stored truth."""
    rate = adata.obs["size_factor"].to_numpy()[:, None] * np.exp(true_eta(adata))
    if likelihood == "bernoulli":
        presence = -np.expm1(-rate)
        variance = presence * (1 - presence)
        return presence, variance, variance * (1 - 2 * presence) ** 2
    if likelihood == "poisson":
        moments = scipy.stats.poisson.stats(rate, moments="mvk")
    else:
        theta = adata.var["theta"].to_numpy()
        moments = scipy.stats.nbinom.stats(theta, theta / (theta + rate), moments="mvk")
    mean, variance, kurtosis = moments
    return mean, variance, variance**2 * (kurtosis + 2)


def test_holds_every_field_with_its_shape_and_name():
    adata = lfm.datasets.simulate(7, 4, 2)
    assert adata.X.shape == (7, 4)
    assert adata.X.dtype == np.float32
    assert adata.obs["a"].shape == (7,)
    assert adata.var["b"].shape == adata.var["sigma"].shape == (4,)
    assert adata.obsm["A"].shape == (7, 2)
    assert adata.varm["B"].shape == (4, 2)
    assert adata.uns["mu"] == 0.5
    assert list(adata.obs_names) == [f"cell_{i}" for i in range(7)]
    assert list(adata.var_names) == [f"gene_{j}" for j in range(4)]


def test_residuals_about_the_stored_truth_are_standard_normal():
    n, m = 800, 500
    z = residuals(lfm.datasets.simulate(n, m, 4, sigma=0.7))
    # Five standard errors of a mean, a variance and a fourth moment of n m independent draws.
    assert abs(z.mean()) < 5 / np.sqrt(n * m)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / (n * m))
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / (n * m))


@pytest.mark.slow
def test_draws_have_the_scales_that_were_asked_for():
    scales = [2.0, 0.5, 0.0]
    adata = lfm.datasets.simulate(5_000, 2_000, 3, mu=-1, cell_scale=0.2, gene_scale=3, factor_scales=scales)
    assert adata.uns["mu"] == -1
    assert adata.obs["a"].std() == pytest.approx(0.2, rel=5 / np.sqrt(2 * 5_000))
    assert adata.var["b"].std() == pytest.approx(3, rel=5 / np.sqrt(2 * 2_000))
    np.testing.assert_allclose(adata.obsm["A"].std(axis=0), 1, rtol=5 / np.sqrt(2 * 5_000))
    np.testing.assert_allclose(adata.varm["B"].std(axis=0), scales, rtol=5 / np.sqrt(2 * 2_000))


def test_default_factor_scales_decrease():
    adata = lfm.datasets.simulate(2, 5_000, 4)
    expected = 1 / np.sqrt([1, 2, 3, 4])
    np.testing.assert_allclose(adata.varm["B"].std(axis=0), expected, rtol=5 / np.sqrt(2 * 5_000))


def test_noise_may_differ_by_gene():
    sigma = np.linspace(0.1, 2, 30)
    adata = lfm.datasets.simulate(5_000, 30, 2, sigma=sigma)
    np.testing.assert_array_equal(adata.var["sigma"], sigma)
    np.testing.assert_allclose((adata.X - true_eta(adata)).std(axis=0), sigma, rtol=5 / np.sqrt(2 * 5_000))


@pytest.mark.parametrize("likelihood", COUNTS)
def test_counts_hold_every_field_and_are_sparse(likelihood):
    adata = lfm.datasets.simulate(7, 4, 2, likelihood=likelihood)
    assert sp.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert adata.shape == (7, 4)
    assert adata.uns["mu"] == -1.5
    assert adata.obs["size_factor"].shape == (7,)
    assert list(adata.obs) == ["a", "size_factor"]
    assert list(adata.var) == (["b", "theta"] if likelihood == "negative_binomial" else ["b"])
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))


@pytest.mark.parametrize("likelihood", COUNTS)
def test_counts_have_the_moments_of_their_law_gene_by_gene(likelihood):
    n, m = 2_000, 150  # more than one block of cells
    options = {"theta": np.geomspace(0.3, 30, m)} if likelihood == "negative_binomial" else {}
    adata = lfm.datasets.simulate(n, m, 3, likelihood=likelihood, mu=-0.5, gene_scale=0.7, rng=2, **options)
    mean, variance, variance_of_square = law(adata, likelihood)
    deviation = adata.X.toarray() - mean
    z = deviation.sum(0) / np.sqrt(variance.sum(0))
    assert np.abs(z).max() < 5
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / m)
    squares = (deviation**2 - variance).sum(0) / np.sqrt(variance_of_square.sum(0))
    # sums of squared counts are skewed
    assert np.abs(squares).max() < 7
    assert abs(squares.mean()) < 5 / np.sqrt(m)


def test_size_factors_have_mean_one_and_the_spread_that_was_asked_for():
    size = lfm.datasets.simulate(20_000, 2, 1, likelihood="poisson", depth_spread=0.8).obs["size_factor"]
    assert np.log(size).std() == pytest.approx(0.8, rel=5 / np.sqrt(2 * 20_000))
    assert size.mean() == pytest.approx(1, abs=5 * np.sqrt(np.expm1(0.8**2) / 20_000))
    alike = lfm.datasets.simulate(10, 5, 1, likelihood="poisson", depth_spread=0)
    assert (alike.obs["size_factor"] == 1).all()


def test_counts_by_default_are_as_sparse_as_molecules_are():
    adata = lfm.datasets.simulate(1_000, 1_000, likelihood="negative_binomial")
    assert 0.15 < adata.X.nnz / (1_000 * 1_000) < 0.4
    assert adata.X.max() < 1_000


def test_all_likelihoods_draw_the_same_latent_variables():
    normal = lfm.datasets.simulate(20, 10, 2)
    for likelihood in COUNTS:
        counts = lfm.datasets.simulate(
            20, 10, 2, likelihood=likelihood, cell_scale=0.3, factor_scales=1 / np.sqrt([1, 2])
        )
        np.testing.assert_array_equal(counts.obsm["A"], normal.obsm["A"])
        np.testing.assert_array_equal(counts.varm["B"], normal.varm["B"])
        np.testing.assert_array_equal(counts.obs["a"], normal.obs["a"])


def test_likelihoods_are_those_of_the_model():
    assert {"normal", *COUNTS} == set(simulation.LIKELIHOODS)


def test_latent_variables_are_independent_of_each_other():
    adata = lfm.datasets.simulate(20_000, 50, 2, cell_scale=1)
    correlation = np.corrcoef(np.column_stack([adata.obs["a"], adata.obsm["A"]]), rowvar=False)
    assert np.abs(correlation - np.eye(3)).max() < 5 / np.sqrt(20_000)


def test_same_seed_same_bits_and_other_seed_other_data():
    first, again = lfm.datasets.simulate(rng=3), lfm.datasets.simulate(rng=np.random.default_rng(3))
    assert first.X.tobytes() == again.X.tobytes()
    assert first.obsm["A"].tobytes() == again.obsm["A"].tobytes()
    assert first.obs.equals(again.obs)
    assert first.var.equals(again.var)
    assert not np.array_equal(first.X, lfm.datasets.simulate(rng=4).X)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_same_seed_same_counts(likelihood):
    first, again = (lfm.datasets.simulate(likelihood=likelihood, rng=3) for _ in range(2))
    for part in ("data", "indices", "indptr"):
        assert getattr(first.X, part).tobytes() == getattr(again.X, part).tobytes()
    assert first.obs.equals(again.obs)
    assert first.var.equals(again.var)
    assert (first.X != lfm.datasets.simulate(likelihood=likelihood, rng=4).X).nnz > 0


def test_a_generator_is_advanced():
    generator = np.random.default_rng(0)
    first, second = (lfm.datasets.simulate(5, 5, 1, rng=generator) for _ in range(2))
    assert not np.array_equal(first.X, second.X)


def test_leaves_numpys_global_seed_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    lfm.datasets.simulate(5, 5, 1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_scales_may_be_zero():
    adata = lfm.datasets.simulate(6, 5, 2, mu=0, cell_scale=0, gene_scale=0, factor_scales=[0, 0])
    assert not true_eta(adata).any()


def test_one_cell_one_gene_one_factor():
    for likelihood in simulation.LIKELIHOODS:
        assert lfm.datasets.simulate(1, 1, 1, likelihood=likelihood).shape == (1, 1)


@pytest.mark.parametrize("likelihood", ["normal", "negative_binomial"])
def test_survives_h5ad(tmp_path, likelihood):
    adata = lfm.datasets.simulate(20, 10, 3, likelihood=likelihood)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    read = ad.read_h5ad(tmp_path / "simulated.h5ad")
    np.testing.assert_array_equal(read.to_df(), adata.to_df())
    assert read.obs.equals(adata.obs)
    assert read.var.equals(adata.var)
    np.testing.assert_array_equal(true_eta(read), true_eta(adata))


POISSON, NB = {"likelihood": "poisson"}, {"likelihood": "negative_binomial"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_cells": 0}, ValueError, r"`n_cells` must be at least 1, found 0"),
        ({"n_genes": -3}, ValueError, r"`n_genes` must be at least 1, found -3"),
        ({"n_factors": 0}, ValueError, r"`n_factors` must be at least 1, found 0"),
        ({"n_factors": 2.5}, TypeError, r"`n_factors` must be a whole number, found 2\.5 of type float"),
        ({"n_cells": True}, TypeError, r"`n_cells` must be a whole number, found True of type bool"),
        ({"mu": "0"}, TypeError, r"`mu` must be a number, found '0' of type str"),
        ({"mu": True}, TypeError, r"`mu` must be a number, found True of type bool"),
        ({"mu": np.inf}, ValueError, r"`mu` must be finite, found inf"),
        ({"mu": [1.0, 2.0]}, ValueError, r"`mu` must be one number, found an array of shape \(2,\)"),
        ({"cell_scale": -0.1}, ValueError, r"`cell_scale` must not be negative, found -0\.1"),
        ({"gene_scale": np.nan}, ValueError, r"`gene_scale` must be finite, found nan"),
        ({"factor_scales": [1.0, 2.0]}, ValueError, r"`factor_scales` must hold 5 numbers, .* shape \(2,\)"),
        ({"factor_scales": 1.0}, ValueError, r"`factor_scales` must hold 5 numbers, .* shape \(\)"),
        ({"factor_scales": [1, 1, 1, 1, -1]}, ValueError, r"`factor_scales` must not be negative, found -1"),
        ({"factor_scales": ["a"] * 5}, TypeError, r"`factor_scales` must be numbers, found \['a'"),
        ({"sigma": 0}, ValueError, r"`sigma` must be above 0, found 0"),
        ({"sigma": -1.0}, ValueError, r"`sigma` must not be negative, found -1"),
        ({"sigma": np.ones(4)}, ValueError, r"`sigma` must hold 300 numbers, found an array of shape \(4,\)"),
        ({"sigma": "1"}, TypeError, r"`sigma` must be a number, found '1' of type str"),
        ({"likelihood": "auto"}, ValueError, r"`likelihood` must be one of 'normal', .*, found 'auto'"),
        (POISSON | {"sigma": 1.0}, ValueError, r"`sigma` belongs to likelihood='normal', .* is 'poisson'"),
        (POISSON | {"theta": 1.0}, ValueError, r"`theta` belongs to likelihood='negative_binomial', .* is 'poisson'"),
        ({"theta": 1.0}, ValueError, r"`theta` belongs to likelihood='negative_binomial', .* is 'normal'"),
        ({"depth_spread": 0}, ValueError, r"`depth_spread` belongs to likelihood='poisson' or .* is 'normal'"),
        (POISSON | {"depth_spread": -1}, ValueError, r"`depth_spread` must not be negative, found -1"),
        (POISSON | {"mu": 20}, ValueError, r"A rate of .* is more than float32 holds exactly .* a lower `mu`"),
        (NB | {"theta": 0}, ValueError, r"`theta` must be above 0, found 0; .* likelihood='poisson'"),
        (NB | {"theta": -2}, ValueError, r"`theta` must be above 0, found -2"),
        (NB | {"theta": [1.0, 2.0]}, ValueError, r"`theta` must hold 300 numbers, found an array of shape \(2,\)"),
        (NB | {"theta": "5"}, TypeError, r"`theta` must be a number, found '5' of type str"),
        (NB | {"theta": np.inf}, ValueError, r"`theta` must be finite, found inf"),
        (NB | {"mu": 10, "theta": 1e-3}, ValueError, r"A count of .* is more than float32 holds .* larger `theta`"),
        ({"rng": True}, TypeError, r"`rng` must be an int or a numpy.random.Generator, found True"),
        ({"rng": "0"}, TypeError, r"`rng` must be an int or a numpy.random.Generator, found '0'"),
        ({"rng": None}, TypeError, r"`rng` must be an int or a numpy.random.Generator, found None"),
        ({"rng": np.random.RandomState(0)}, TypeError, r"`rng` must be an int or a numpy.random.Generator"),
        ({"rng": -1}, ValueError, r"`rng` must be at least 0, found -1"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_found(arguments, error, message):
    with pytest.raises(error, match=message):
        lfm.datasets.simulate(**arguments)
