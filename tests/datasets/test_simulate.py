from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scvi_lfm as lfm


def eta(adata: ad.AnnData) -> np.ndarray:
    shift = adata.uns["mu"] + adata.obs["a"].to_numpy()[:, None] + adata.var["b"].to_numpy()
    return shift + adata.obsm["A"] @ adata.varm["B"].T


def residuals(adata: ad.AnnData) -> np.ndarray:
    return (adata.X - eta(adata)) / adata.var["sigma"].to_numpy()


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
    np.testing.assert_allclose((adata.X - eta(adata)).std(axis=0), sigma, rtol=5 / np.sqrt(2 * 5_000))


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
    assert not eta(adata).any()


def test_one_cell_one_gene_one_factor():
    assert lfm.datasets.simulate(1, 1, 1).shape == (1, 1)


def test_survives_h5ad(tmp_path):
    adata = lfm.datasets.simulate(20, 10, 3)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    read = ad.read_h5ad(tmp_path / "simulated.h5ad")
    np.testing.assert_array_equal(read.X, adata.X)
    np.testing.assert_array_equal(eta(read), eta(adata))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_cells": 0}, ValueError, r"`n_cells` must be at least 1, found 0"),
        ({"n_genes": -3}, ValueError, r"`n_genes` must be at least 1, found -3"),
        ({"n_factors": 0}, ValueError, r"`n_factors` must be at least 1, found 0"),
        ({"n_factors": 2.0}, TypeError, r"`n_factors` must be a whole number, found 2\.0 of type float"),
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
        ({"sigma": None}, TypeError, r"`sigma` must be a number, found None of type NoneType"),
        ({"rng": True}, TypeError, r"`rng` must be an int or a numpy.random.Generator, found True"),
        ({"rng": "0"}, TypeError, r"`rng` must be an int or a numpy.random.Generator, found '0'"),
        ({"rng": None}, TypeError, r"`rng` must be an int or a numpy.random.Generator, found None"),
        ({"rng": np.random.RandomState(0)}, TypeError, r"`rng` must be an int or a numpy.random.Generator"),
        ({"rng": -1}, ValueError, r"`rng` must not be negative, found -1"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_found(arguments, error, message):
    with pytest.raises(error, match=message):
        lfm.datasets.simulate(**arguments)
