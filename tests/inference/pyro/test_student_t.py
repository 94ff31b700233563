"""The Pyro engine under the Student t, against SciPy's densities and simulated outliers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import t as student

import scvi_lfm as lfm
from scvi_lfm._context import pyro_sandbox
from scvi_lfm.data import CellMatrix
from scvi_lfm.inference.pyro.normal import NormalProgram
from scvi_lfm.inference.pyro.student_t import LEAST_DF, MOST_DF, StudentProgram, _df, _raw
from simulated import true_eta

CPU = torch.device("cpu")


def values(df=None, n_cells=60, n_genes=40, seed=0):
    """Values with noise of scale one, and their eta."""
    adata = lfm.datasets.simulate(n_cells, n_genes, 2, factor_scales=[1.5, 1.0], sigma=1.0, mu=1.0, rng=seed)
    eta = true_eta(adata)
    if df is not None:
        adata.X = (eta + np.random.default_rng(seed).standard_t(df, eta.shape)).astype(np.float32)
    return adata, eta


def program_of(fit_options, kind=StudentProgram, df=None, **options):
    adata, _ = values(df)
    settings = {"n_factors": 2, "likelihood": "normal" if kind is NormalProgram else "student_t"} | options
    return kind(CellMatrix.of(np.asarray(adata.X)), fit_options(**settings)), np.asarray(adata.X, dtype=float)


@pytest.mark.parametrize("df", [2.5, 4.0, 60.0])
def test_degrees_of_freedom_are_free(df):
    assert float(_df(_raw(df))) == pytest.approx(df, rel=1e-4)


def test_degrees_of_freedom_have_bounds():
    assert float(_df(torch.tensor(-50.0))) == pytest.approx(LEAST_DF)
    assert float(_df(torch.tensor(50.0))) == pytest.approx(MOST_DF)


@pytest.mark.parametrize("noise", ["gene", pytest.param("shared", marks=pytest.mark.slow)])
def test_the_last_elbo_is_the_mean_log_density_less_divergences(fit_options, noise):
    with pyro_sandbox(0, CPU):
        program, y = program_of(fit_options, df=3.0, noise=noise)
        found = program._mean_elbo()
    shared, n, m = program._shared, *y.shape
    q, scales = shared.guide(program._cells(torch.arange(n))), program._scales()
    rng, draws = np.random.default_rng(1), 1500
    arrays = {name: getattr(q, name).detach().double().numpy() for name in ("mu_loc", "mu_scale", "cell_loc")}
    cell, gene = q.cell_tril.detach().double().numpy(), q.gene_tril.detach().double().numpy()
    total = 0.0
    for _ in range(draws):
        aA = arrays["cell_loc"] + rng.standard_normal((n, 3)) @ cell.T
        z = rng.standard_normal((m, 3))
        bB = q.gene_loc.detach().numpy() + (z @ gene.T if gene.ndim == 2 else np.einsum("jkl,jl->jk", gene, z))
        mu = arrays["mu_loc"] + arrays["mu_scale"] * rng.standard_normal()
        eta = mu + aA[:, :1] + bB[:, 0] + aA[:, 1:] @ bB[:, 1:].T
        total += student.logpdf(y, float(scales.df.detach()), eta, scales.sigma.detach().numpy()).sum() / draws

    def divergence(loc, tril, scale):
        cov = np.broadcast_to(tril @ np.swapaxes(tril, -1, -2), (len(loc), 3, 3))
        second = (loc**2 + np.diagonal(cov, axis1=1, axis2=2)) / scale**2
        return 0.5 * (second.sum() - loc.size + 2 * len(loc) * np.log(scale).sum() - np.linalg.slogdet(cov)[1].sum())

    def sds(first, rest):
        return np.concatenate([[float(first.detach())], rest.detach().numpy()])

    wanted = total - divergence(arrays["cell_loc"], cell, sds(scales.a, scales.A))
    wanted -= divergence(q.gene_loc.detach().numpy(), gene, sds(scales.b, scales.B))
    ratio = (arrays["mu_scale"] / 100) ** 2
    wanted -= 0.5 * (ratio + (arrays["mu_loc"] / 100) ** 2 - 1 - np.log(ratio))
    assert found == pytest.approx(wanted / y.size, abs=4e-3)


def test_outliers_make_the_student_t_the_better_model_without_factors_too(fit_options):
    bounds = {}
    for df in (None, 3.0):
        for kind in (NormalProgram, StudentProgram):
            with pyro_sandbox(0, CPU):
                bounds[df, kind] = program_of(fit_options, kind, df)[0].rank0
    # it holds the Normal, but for the most degrees of freedom and for being measured at one draw
    assert bounds[None, StudentProgram] > bounds[None, NormalProgram] - 0.02
    assert bounds[3.0, StudentProgram] > bounds[3.0, NormalProgram] + 0.02


@pytest.mark.slow
def test_outliers_cost_little():
    adata, eta = values(3.0, 200, 60)
    errors, fits = {}, {}
    for likelihood, engine in (("normal", "natural_gradient"), ("student_t", "pyro")):
        options = {"learning_rate": 0.03, "max_epochs": 700} if engine == "pyro" else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The fit did not converge")
            lfm.tl.fit(adata, 2, likelihood=likelihood, engine=engine, progress=False, **options)
        found = adata.uns["lfm"]["mu"] + adata.obs["lfm_a"].to_numpy()[:, None] + adata.var["lfm_b"].to_numpy()
        found = found + adata.obsm["X_lfm"] @ adata.varm["lfm"].T
        errors[likelihood] = np.sqrt(((found - eta) ** 2).mean())
        fits[likelihood] = adata.uns["lfm"]
    assert errors["student_t"] < 0.85 * errors["normal"]
    assert 2.5 < fits["student_t"]["df"] < 4
    assert 0.9 < fits["student_t"]["sigma"] < 1.1
    assert "df" not in fits["normal"]
    assert fits["student_t"]["elbo"]["value"][-1] > fits["normal"]["elbo"]["value"][-1]
