from __future__ import annotations

import numpy as np
import pytest

import scvi_lfm as lfm


@pytest.fixture
def counts(fit_of):
    return fit_of("negative_binomial")


def drawn(axes):
    (points,) = (points for points in axes.collections if points.get_array() is not None and len(points.get_offsets()))
    return dict(zip(map(tuple, points.get_offsets().data), points.get_array(), strict=True))


def by_hand(adata):
    sd = np.sqrt((adata.obsm["X_lfm_sd"].astype(float) ** 2).sum(1))
    place = adata.obsm["X_lfm"].astype(float)
    return sd, sd / np.sqrt(((place - place.mean(0)) ** 2).sum(1).mean())


def test_table(counts):
    table = lfm.get.uncertainty_df(counts)
    sd, relative = by_hand(counts)
    np.testing.assert_allclose(table["sd"], sd)
    np.testing.assert_allclose(table["relative"], relative)
    assert table.index.equals(counts.obs_names)
    counts.obs["lfm_sd"] = table["relative"]
    assert counts.obs["lfm_sd"].notna().all()


def test_no_rotation_of_the_factors_changes_it():
    """The sum of variances is the trace of a covariance."""
    adata = lfm.datasets.simulate(30, 20, 2, likelihood="poisson", mu=1)
    lfm.tl.fit(adata, 2, progress=False)
    n, r = adata.n_obs, 2
    packed = adata.obsm["lfm_cov"]
    rows, cols = np.tril_indices(r + 1)
    cov = np.zeros((n, r + 1, r + 1))
    cov[:, rows, cols] = cov[:, cols, rows] = packed
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(r, r)))[0]
    turned = turn @ cov[:, 1:, 1:] @ turn.T
    sd = np.sqrt(np.trace(turned, axis1=1, axis2=2))
    np.testing.assert_allclose(lfm.get.uncertainty_df(adata)["sd"], sd, rtol=1e-4)


def test_cells_are_drawn_in_the_plane_of_the_first_factors(counts):
    axes = lfm.pl.uncertainty(counts, show=False)
    _, relative = by_hand(counts)
    found = drawn(axes)
    places = [tuple(place) for place in counts.obsm["X_lfm"][:, :2].astype(float)]
    np.testing.assert_allclose([found[place] for place in places], relative)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("factor 0", "factor 1")


@pytest.mark.parametrize(("key", "basis"), [("X_umap", "umap"), ("X_umap", "X_umap"), ("mine", "mine")])
def test_any_embedding_is_found_as_scanpy_finds_it(counts, key, basis):
    counts.obsm[key] = np.random.default_rng(0).normal(size=(counts.n_obs, 3))
    axes = lfm.pl.uncertainty(counts, basis, show=False)
    assert set(drawn(axes)) == {tuple(place) for place in counts.obsm[key][:, :2]}
    assert axes.get_xlabel() == {"X_umap": "UMAP1", "mine": "mine1"}[key]


def test_darker_is_less_known(counts):
    from matplotlib.colors import to_rgb

    axes = lfm.pl.uncertainty(counts, show=False)
    points = next(points for points in axes.collections if points.get_array() is not None)
    colors = points.get_cmap()(points.norm(np.sort(points.get_array())))
    luminance = [np.dot(to_rgb(color), [0.2126, 0.7152, 0.0722]) for color in colors]
    assert (np.diff(luminance) <= 0).all()
    assert luminance[0] > luminance[-1]


def test_cells_that_are_known_equally_well_are_said_to_be(fit_of):
    """Under the Normal with one noise, every cell has the same covariance."""
    adata = fit_of("normal")
    axes = lfm.pl.uncertainty(adata, show=False)
    _, relative = by_hand(adata)
    assert [text.get_text() for text in axes.texts] == [f"all cells are known equally well: {relative[0]:.2g}"]
    assert not lfm.pl.uncertainty(fit_of("negative_binomial"), show=False).texts


def test_cells_placed_later_have_it_too(counts):
    new = counts[:10].copy()
    lfm.tl.project(new, counts, key_added="placed")
    axes = lfm.pl.uncertainty(new, key="placed", show=False)
    assert set(drawn(axes)) == {tuple(place) for place in new.obsm["X_placed"][:, :2].astype(float)}


@pytest.mark.parametrize(
    ("basis", "error", "message"),
    [
        ("umpa", KeyError, r"`basis`: obsm has neither 'umpa' nor 'X_umpa'\. Did you mean 'X_umap'"),
        (3, TypeError, r"`basis` must be the name of an embedding in obsm, such as 'umap', found 3"),
        ("flat", ValueError, r"`basis`: obsm\['flat'\] has shape \(40, 1\), and two columns are needed"),
        ("holes", ValueError, r"`basis`: obsm\['holes'\] says of 3 of 40 cells not where they lie"),
    ],
)
def test_a_wrong_basis_is_named(counts, basis, error, message):
    counts.obsm["X_umap"], counts.obsm["flat"] = np.ones((40, 2)), np.ones((40, 1))
    counts.obsm["holes"] = np.where(np.arange(40)[:, None] < 3, np.nan, np.ones((40, 2)))
    with pytest.raises(error, match=message):
        lfm.pl.uncertainty(counts, basis, show=False)
