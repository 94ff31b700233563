from __future__ import annotations

import pytest
import torch

from scvi_lfm.model import Gaussian
from scvi_lfm.posterior import Posterior


@pytest.fixture(scope="session")
def draw_posterior():
    """A posterior in no particular gauge, with a general prior and a noise for each gene."""

    def draw(n: int, m: int, r: int, *, seed: int = 0) -> Posterior:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def positive(*shape: int) -> torch.Tensor:
            return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

        def covariance() -> torch.Tensor:
            factor = normal(r + 1, r + 1)
            return factor @ factor.T + 0.1 * torch.eye(r + 1, dtype=torch.float64)

        return Posterior(
            mu=float(normal()),
            cell_mean=1 + normal(n, r + 1),
            cell_cov=covariance(),
            gene_mean=normal(m, r + 1) - 0.5,
            gene_basis=normal(r + 1, r + 1),
            gene_eig=positive(r + 1),
            sigma=positive(m),
            predictive_sigma=positive(m),
            cell_prior=Gaussian(normal(r + 1), covariance()),
            gene_prior=Gaussian(normal(r + 1), covariance()),
        )

    return draw


@pytest.fixture(scope="session")
def dense_gene_covs():
    """T_j of every gene under some noise, (m, r+1, r+1)."""

    def covs(q: Posterior, sigma: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ik,jk,lk->jil", q.gene_basis, q.gene_diagonal(sigma), q.gene_basis)

    return covs


@pytest.fixture(scope="session")
def predictions(eta_moments, dense_gene_covs):
    """All that a posterior says about eta: means, variances, covariances along rows and columns, and its prior's."""

    def of(q: Posterior) -> dict[str, torch.Tensor]:
        covs = dense_gene_covs(q, q.sigma)
        mean, var = eta_moments(q.mu, q.cell_mean.numpy(), q.cell_cov.numpy(), q.gene_mean.numpy(), covs.numpy())
        one, none = q.cell_prior.mean[None], q.gene_prior.mean[None]
        prior_mean, prior_var = eta_moments(
            q.mu, one.numpy(), q.cell_prior.cov.numpy(), none.numpy(), q.gene_prior.cov[None].numpy()
        )
        u = torch.cat([torch.ones(len(q.cell_mean), 1), q.cell_mean[:, 1:]], dim=1)
        v = torch.cat([torch.ones(len(q.gene_mean), 1), q.gene_mean[:, 1:]], dim=1)
        return {
            "mean": mean,
            "var": var,
            "along a row": v @ q.cell_cov @ v.T,
            "along a column": torch.einsum("ik,jkl,hl->jih", u, covs, u),
            "prior mean": prior_mean,
            "prior var": prior_var,
        }

    return of
