from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from as_blocks import as_blocks
from scvi_lfm.data import Batch, CellMatrix
from scvi_lfm.inference import FitOptions
from scvi_lfm.inference.normal.elbo import elbo
from scvi_lfm.inference.normal.natural_gradient import cell_statistics
from scvi_lfm.inference.normal.start import add_random_factors, fit_without_factors
from scvi_lfm.inference.normal.state import NormalGlobals, NormalStatistics
from scvi_lfm.inference.state import Problem
from scvi_lfm.model import Gaussian, PriorScales

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_lfm.inference.normal.sweep import Step

CPU = torch.device("cpu")


@dataclass(frozen=True)
class State:
    """A q and data, both drawn at random: nothing is at its optimum; every gene has a T_j and a noise of its own."""

    problem: Problem
    batch: Batch
    globals: NormalGlobals
    cell_mean: Tensor
    cell_cov: Tensor

    @property
    def y(self) -> Tensor:
        return self.batch.dense()

    @property
    def statistics(self) -> NormalStatistics:
        return cell_statistics(self.batch, self.cell_mean, self.cell_cov)

    @property
    def gene_covs(self) -> Tensor:
        """T_j, (m, r+1, r+1)."""
        g = self.globals
        return torch.einsum("ik,jk,lk->jil", g.gene_basis, g.gene_diagonal, g.gene_basis)

    @property
    def elbo(self) -> Tensor:
        return elbo(self.globals, self.statistics, self.cell_cov, self.problem.n_cells)

    def expected_squares(self, eta_moments) -> np.ndarray:
        """E (y_ij - eta_ij)^2, entry by entry."""
        g = self.globals
        mean, var = eta_moments(
            float(g.mu), self.cell_mean.numpy(), self.cell_cov.numpy(), g.gene_mean.numpy(), self.gene_covs.numpy()
        )
        return (self.y.numpy() - mean) ** 2 + var + float(g.mu_var)


def _covariance(generator: torch.Generator, size: int, family: str) -> Tensor:
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    cov = factor @ factor.T / size + 0.1 * torch.eye(size, dtype=torch.float64)
    return torch.diag(cov.diagonal()) if family == "mean_field" else cov


@pytest.fixture(scope="session")
def draw_state():
    """Draw a :class:`State`."""

    def draw(n: int, m: int, r: int, *, family: str = "row_block", noise: str = "gene", seed: int = 0) -> State:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def positive(*shape: int) -> Tensor:
            return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

        matrix = CellMatrix.of((1 + 1.5 * normal(n, m)).numpy())
        basis = torch.diag(positive(r + 1)) if family == "mean_field" else normal(r + 1, r + 1)
        g = NormalGlobals(
            mu=normal(),
            mu_var=positive(),
            gene_mean=normal(m, r + 1),
            gene_basis=basis,
            gene_eig=positive(r + 1),
            gene_diagonal=positive(m, r + 1),
            precision=positive(m),
            scales=PriorScales(a=positive(), A=positive(r), b=positive(), B=positive(r)),
        )
        return State(
            problem=Problem(n, m, family, noise, rotates=False),
            batch=matrix.batch(None, CPU, torch.float64),
            globals=g,
            cell_mean=normal(n, r + 1),
            cell_cov=_covariance(generator, r + 1, family),
        )

    return draw


@pytest.fixture(scope="session")
def first_step():
    """The engine's starting point for data in one batch."""

    def start(problem: Problem, batch: Batch, n_factors: int, prior_scales=None, seed: int = 0) -> Step:
        scales = prior_scales or {}
        cells = as_blocks(batch)
        step = fit_without_factors(problem, cells, scales)
        if not n_factors:
            return step
        generator = torch.Generator().manual_seed(seed)
        return add_random_factors(problem, step.globals, cells, n_factors, scales, generator)

    return start


@pytest.fixture(scope="session")
def whole_batch():
    """All cells as one block in float64."""

    def batch(values: np.ndarray) -> Batch:
        return CellMatrix.of(np.asarray(values, dtype=np.float64)).batch(None, CPU, torch.float64)

    return batch


@pytest.fixture(scope="session")
def fit_options():
    """Options of a quiet fit in float64, with changes."""
    base = FitOptions(
        n_factors=3,
        likelihood="normal",
        noise="shared",
        family="row_block",
        prior_scales={},
        batch_size=1_000_000,
        max_epochs=100,
        tol=1e-4,
        device=CPU,
        dtype=torch.float64,
        seed=0,
        progress=False,
    )

    def options(**changes) -> FitOptions:
        return replace(base, **changes)

    return options


@pytest.fixture(scope="session")
def general_prior():
    """A prior with a mean and a full covariance, as the stored gauge has it."""

    def prior(k: int, seed: int = 1) -> Gaussian:
        rng = np.random.default_rng(seed)
        factor = rng.standard_normal((k, k))
        return Gaussian(
            torch.from_numpy(0.3 * rng.standard_normal(k)), torch.from_numpy(factor @ factor.T / k + 0.2 * np.eye(k))
        )

    return prior
