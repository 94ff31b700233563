from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_lfm.linalg.covariances import Common, Eigenbasis, Packed
from scvi_lfm.model import Gaussian
from scvi_lfm.model.noise import CountNoise, NormalNoise
from scvi_lfm.posterior import CountPosterior, NormalPosterior, Posterior


@pytest.fixture(scope="session")
def draw_posterior():
    """A posterior in no particular gauge, with a general prior and a noise for each gene."""

    def draw(n: int, m: int, r: int, *, seed: int = 0) -> NormalPosterior:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def positive(*shape: int) -> torch.Tensor:
            return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

        def covariance() -> torch.Tensor:
            factor = normal(r + 1, r + 1)
            return factor @ factor.T + 0.1 * torch.eye(r + 1, dtype=torch.float64)

        mu, cell_mean, cell_cov = float(normal()), 1 + normal(n, r + 1), Common(covariance(), n)
        gene_mean, basis, eig = normal(m, r + 1) - 0.5, normal(r + 1, r + 1), positive(r + 1)
        noise = NormalNoise(positive(m), positive(m))
        return NormalPosterior(
            mu=mu,
            cell_mean=cell_mean,
            cell_cov=cell_cov,
            gene_mean=gene_mean,
            gene_cov=Eigenbasis(basis, eig, noise.predictive),
            noise=noise,
            cell_prior=Gaussian(normal(r + 1), covariance()),
            gene_prior=Gaussian(normal(r + 1), covariance()),
        )

    return draw


@pytest.fixture(scope="session")
def dense_gene_covs():
    """T_j of every gene under some noise, (m, r+1, r+1)."""

    def covs(q: NormalPosterior, sigma: torch.Tensor) -> torch.Tensor:
        basis, eig = q.gene_cov.basis, q.gene_cov.eig
        diagonal = 1 / (eig / sigma.double().square()[:, None] + 1)
        return torch.einsum("ik,jk,lk->jil", basis, diagonal, basis)

    return covs


@pytest.fixture(scope="session")
def draw_count_posterior():
    """A posterior of counts in no particular gauge, with covariances of its own for every cell and gene."""

    def draw(n: int, m: int, r: int, *, likelihood: str = "negative_binomial", seed: int = 0) -> CountPosterior:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def covariances(rows: int) -> torch.Tensor:
            factor = normal(rows, r + 1, r + 1)
            return 0.1 * (factor @ factor.mT + torch.eye(r + 1, dtype=torch.float64))

        def packed(rows: int) -> Packed:
            lower = torch.tril_indices(r + 1, r + 1)
            return Packed(covariances(rows)[:, lower[0], lower[1]])

        return CountPosterior(
            mu=float(normal()),
            cell_mean=0.2 + normal(n, r + 1),
            cell_cov=packed(n),
            gene_mean=0.5 * normal(m, r + 1) - 0.2,
            gene_cov=packed(m),
            noise=CountNoise(likelihood, normal(m).square(), normal(n)),
            cell_prior=Gaussian(normal(r + 1), covariances(1)[0]),
            gene_prior=Gaussian(normal(r + 1), covariances(1)[0]),
        )

    return draw


@pytest.fixture(scope="session")
def predictions(eta_moments, dense_gene_covs, dense):
    """All that a posterior says about eta: means, variances, covariances along rows and columns, and its prior's."""

    def of(q: Posterior) -> dict[str, np.ndarray]:
        T = dense(q.gene_cov) if isinstance(q, CountPosterior) else dense_gene_covs(q, q.noise.sigma)
        S = dense(q.cell_cov)
        rows = [
            eta_moments(q.mu, q.cell_mean[[i]].numpy(), S[i].numpy(), q.gene_mean.numpy(), T.numpy())
            for i in range(len(S))
        ]
        one, none = q.cell_prior.mean[None], q.gene_prior.mean[None]
        prior_mean, prior_var = eta_moments(
            q.mu, one.numpy(), q.cell_prior.cov.numpy(), none.numpy(), q.gene_prior.cov[None].numpy()
        )
        u = torch.cat([torch.ones(len(q.cell_mean), 1), q.cell_mean[:, 1:]], dim=1)
        v = torch.cat([torch.ones(len(q.gene_mean), 1), q.gene_mean[:, 1:]], dim=1)
        return {
            "mean": np.concatenate([mean for mean, _ in rows]),
            "var": np.concatenate([var for _, var in rows]),
            "along a row": torch.einsum("jk,ikl,hl->ijh", v, S, v),
            "along a column": torch.einsum("ik,jkl,hl->jih", u, T, u),
            "prior mean": prior_mean,
            "prior var": prior_var,
        }

    return of
