"""What is written into an AnnData is what is read from it, through files and slices."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from operator import attrgetter

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scvi_lfm.posterior import NormalPosterior, read_fit, to_stored_gauge, write_fit

N, M = 12, 9
ALL = np.ones(M, dtype=bool)
SMALL = {"cell_cov": "cell_cov.matrix", "gene_basis": "gene_cov.basis", "gene_eig": "gene_cov.eig"}


def empty(n=N, m=M):
    return ad.AnnData(
        obs=pd.DataFrame(index=[f"cell_{i}" for i in range(n)]), var=pd.DataFrame(index=[f"gene_{j}" for j in range(m)])
    )


def record(noise="gene"):
    return {"params": {"noise": noise}, "variance_ratio": np.zeros(3, dtype=np.float32), "converged": True}


@pytest.fixture
def posterior(draw_posterior):
    """As a fit gives it: in the stored gauge, and without noise of its own for predicting."""

    def make(n=N, m=M, r=3, noise="gene"):
        q = to_stored_gauge(draw_posterior(n, m, r))
        if noise == "shared":
            return replace(q, noise=replace(q.noise, sigma=torch.full((m,), 0.7, dtype=torch.float64)))
        return replace(q, noise=replace(q.noise, predictive=q.noise.sigma), gene_cov=q.gene_cov.under(q.noise.sigma))

    return make


def parts(value):
    if not is_dataclass(value):
        return [value]
    return [part for field in fields(value) for part in parts(getattr(value, field.name))]


def assert_same(actual: NormalPosterior, expected: NormalPosterior, *, rtol=0.0):
    for field in fields(NormalPosterior):
        values = parts(getattr(actual, field.name)), parts(getattr(expected, field.name))
        for mine, other in zip(*values, strict=True):
            assert np.asarray(mine).dtype == np.asarray(other).dtype
            if other is None:
                assert mine is None
                continue
            np.testing.assert_allclose(mine, other, rtol=rtol, atol=rtol, err_msg=field.name)


@pytest.mark.parametrize("noise", ["shared", "gene"])
@pytest.mark.parametrize("n_factors", [3, 5])
def test_reads_what_was_written(posterior, noise, n_factors):
    adata, q = empty(), posterior(noise=noise)
    write_fit(adata, "fit", q, n_factors=n_factors, fitted=ALL, record=record(noise))
    stored = read_fit(adata, "fit")
    # means are stored in float32, small matrices in float64
    assert_same(stored.posterior, q, rtol=2e-7 * float(q.cell_mean.abs().max()))
    for name in SMALL.values():
        assert torch.equal(attrgetter(name)(stored.posterior), attrgetter(name)(q))
    for name in ("cell_prior", "gene_prior"):
        assert torch.equal(getattr(stored.posterior, name).cov, getattr(q, name).cov)
    assert stored.posterior.mu == q.mu
    assert stored.active.tolist() == [True] * 3 + [False] * (n_factors - 3)
    assert stored.fitted.all()
    assert stored.params["noise"] == noise


@pytest.mark.parametrize("noise", ["shared", "gene"])
def test_writing_again_what_was_read_changes_nothing(posterior, noise):
    first, second = empty(), empty()
    write_fit(first, "lfm", posterior(noise=noise), n_factors=4, fitted=ALL, record=record(noise))
    stored = read_fit(first, "lfm").posterior
    write_fit(second, "lfm", stored, n_factors=4, fitted=ALL, record=record(noise))
    assert_same(read_fit(second, "lfm").posterior, stored)
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.var, second.var)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_survives_files(posterior, tmp_path, form):
    adata = empty()
    mask = np.arange(M) != 4
    write_fit(adata, "lfm", posterior(m=M - 1), n_factors=5, fitted=mask, record=record())
    path = tmp_path / f"fit.{form}"
    if form == "h5ad":
        adata.write_h5ad(path)
        read = ad.read_h5ad(path)
    else:
        adata.write_zarr(path)
        read = ad.read_zarr(path)
    before, after = read_fit(adata, "lfm"), read_fit(read, "lfm")
    assert_same(after.posterior, before.posterior)
    np.testing.assert_array_equal(after.active, before.active)
    np.testing.assert_array_equal(after.fitted, before.fitted)


def test_factors_that_are_off_are_zero(posterior):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=5, fitted=ALL, record=record())
    for values in (adata.obsm["X_lfm"], adata.obsm["X_lfm_sd"], adata.varm["lfm"], adata.varm["lfm_sd"]):
        assert values.shape[1] == 5
        assert values[:, :3].all()
        assert not values[:, 3:].any()
    for name in ("cell_cov", "gene_basis", "prior_cell_cov", "prior_gene_cov"):
        matrix = adata.uns["lfm"][name]
        assert matrix.shape == (6, 6)
        assert not matrix[4:].any()
        assert not matrix[:, 4:].any()


def test_a_fit_with_every_factor_off_can_be_read(posterior):
    adata, q = empty(), posterior(r=0)
    write_fit(adata, "lfm", q, n_factors=2, fitted=ALL, record=record())
    stored = read_fit(adata, "lfm").posterior
    assert adata.obsm["X_lfm"].shape == (N, 2)
    assert stored.n_factors == 0
    np.testing.assert_allclose(stored.gene_mean, q.gene_mean, rtol=1e-6)


@pytest.mark.parametrize("noise", ["shared", "gene"])
def test_standard_deviations_are_roots_of_the_diagonals(posterior, dense_gene_covs, noise):
    adata, q = empty(), posterior(noise=noise)
    write_fit(adata, "lfm", q, n_factors=3, fitted=ALL, record=record(noise))
    gene_sd = dense_gene_covs(q, q.noise.predictive).diagonal(dim1=1, dim2=2).sqrt()
    np.testing.assert_allclose(adata.var["lfm_b_sd"], gene_sd[:, 0], rtol=1e-6)
    np.testing.assert_allclose(adata.varm["lfm_sd"], gene_sd[:, 1:], rtol=1e-6)
    cell_sd = q.cell_cov.matrix.diagonal().sqrt()
    np.testing.assert_allclose(adata.obs["lfm_a_sd"], np.full(N, cell_sd[0]), rtol=1e-6)
    np.testing.assert_allclose(adata.obsm["X_lfm_sd"], np.tile(cell_sd[1:], (N, 1)), rtol=1e-6)


def test_genes_that_were_not_fitted_are_missing(posterior):
    adata, q = empty(), posterior(m=M - 3)
    mask = ~np.isin(np.arange(M), [0, 4, 8])
    write_fit(adata, "lfm", q, n_factors=3, fitted=mask, record=record())
    for values in (adata.varm["lfm"], adata.varm["lfm_sd"], adata.var[["lfm_b", "lfm_b_sd", "lfm_sigma"]].to_numpy()):
        assert np.isnan(values[~mask]).all()
        assert np.isfinite(values[mask]).all()
    stored = read_fit(adata, "lfm")
    np.testing.assert_array_equal(stored.fitted, mask)
    np.testing.assert_allclose(stored.posterior.gene_mean, q.gene_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stored.posterior.noise.sigma, q.noise.sigma, rtol=1e-6)


@pytest.mark.parametrize("copy", [False, True])
def test_slices_keep_their_own_rows(posterior, predictions, copy):
    adata = empty()
    mask = np.arange(M) != 2
    write_fit(adata, "lfm", posterior(m=M - 1), n_factors=4, fitted=mask, record=record())
    whole = read_fit(adata, "lfm").posterior
    cells, genes = [7, 1, 3], np.array([8, 2, 0, 5])
    part = adata[cells, genes]
    stored = read_fit(part.copy() if copy else part, "lfm")
    np.testing.assert_array_equal(stored.fitted, [True, False, True, True])
    rows = [7, 0, 4]  # of genes 8, 0 and 5 among those fitted
    assert torch.equal(stored.posterior.cell_mean, whole.cell_mean[cells])
    assert torch.equal(stored.posterior.gene_mean, whole.gene_mean[rows])
    before, after = predictions(whole), predictions(stored.posterior)
    for what in ("mean", "var"):
        np.testing.assert_allclose(after[what], before[what][np.ix_(cells, rows)], rtol=1e-12)


def test_reads_genes_alone(posterior):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=3, fitted=ALL, record=record())
    del adata.obsm["X_lfm"]
    stored = read_fit(adata, "lfm", cells=False).posterior
    assert stored.cell_mean.shape == (0, 4)
    assert stored.gene_mean.shape == (M, 4)


def test_two_fits_live_side_by_side(posterior):
    adata = empty()
    write_fit(adata, "one", posterior(r=2), n_factors=2, fitted=ALL, record=record())
    write_fit(adata, "two", posterior(r=3), n_factors=3, fitted=ALL, record=record())
    assert read_fit(adata, "one").posterior.n_factors == 2
    assert read_fit(adata, "two").posterior.n_factors == 3


def test_nothing_along_cells_or_genes_lies_in_uns(posterior):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=3, fitted=ALL, record=record())
    for value in adata.uns["lfm"].values():
        assert not {N, M} & set(np.shape(value))


def test_holds_numpy_in_the_documented_precision(posterior):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=3, fitted=ALL, record=record())
    for values in (*adata.obsm.values(), *adata.varm.values()):
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
    assert set(adata.obs.dtypes) | set(adata.var.dtypes) == {np.dtype(np.float32)}
    for name in (*SMALL, "prior_cell_mean", "prior_cell_cov", "prior_gene_mean", "prior_gene_cov"):
        assert adata.uns["lfm"][name].dtype == np.float64
    assert isinstance(adata.uns["lfm"]["mu"], float)


@pytest.mark.parametrize(
    ("container", "name", "message"),
    [
        ("uns", "lfm", r"uns has no 'lfm'"),
        ("obs", "lfm_a", r"obs has no 'lfm_a'"),
        ("obsm", "X_lfm", r"obsm has no 'X_lfm'"),
        ("var", "lfm_b", r"var has no 'lfm_b'"),
        ("var", "lfm_sigma", r"var has no 'lfm_sigma'"),
        ("varm", "lfm", r"varm has no 'lfm'"),
    ],
)
def test_a_missing_field_is_named_with_the_call_that_mends_it(posterior, container, name, message):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=3, fitted=ALL, record=record())
    del getattr(adata, container)[name]
    with pytest.raises(KeyError, match=message) as error:
        read_fit(adata, "lfm")
    assert "lfm.tl.fit" in str(error.value)


def test_a_near_key_is_suggested(posterior):
    adata = empty()
    write_fit(adata, "lfm_fit", posterior(), n_factors=3, fitted=ALL, record=record())
    with pytest.raises(KeyError, match=r"Did you mean 'lfm_fit'\?"):
        read_fit(adata, "lfm_fti")


@pytest.mark.parametrize("missing", ["params", "cell_cov", "gene_basis", "gene_eig", "prior_cell_cov", "mu", "sigma"])
def test_uns_of_another_origin_is_refused(posterior, missing):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=3, fitted=ALL, record=record("shared"))
    del adata.uns["lfm"][missing]
    with pytest.raises(KeyError, match=missing):
        read_fit(adata, "lfm")


def test_an_overwritten_embedding_is_refused(posterior):
    adata = empty()
    write_fit(adata, "lfm", posterior(), n_factors=3, fitted=ALL, record=record())
    adata.obsm["X_lfm"] = adata.obsm["X_lfm"][:, :2]
    with pytest.raises(ValueError, match=r"obsm\['X_lfm'\] has shape \(12, 2\), but the fit has 3 factors"):
        read_fit(adata, "lfm")
