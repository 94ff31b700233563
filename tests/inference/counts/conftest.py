from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scvi_lfm.inference.counts.state import Cells, CountGlobals, CountProblem
from scvi_lfm.model import PriorScales
from scvi_lfm.model.likelihoods import COUNTS
from scvi_lfm.posterior.rates import GeneFeatures

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("a", "A", "b", "B")


@dataclass(frozen=True)
class CountState:
    """A q and counts, both drawn at random in float64: nothing is at its optimum, and every row has its covariance."""

    problem: CountProblem
    likelihood: str
    y: Tensor  # (n, m)
    cells: Cells
    globals: CountGlobals
    S: np.ndarray  # (n, r+1, r+1)
    T: np.ndarray  # (m, r+1, r+1)

    @property
    def features(self) -> GeneFeatures:
        return GeneFeatures.of(self.globals.gene_mean, self.globals.gene_cov)


def triangles(full: np.ndarray) -> Tensor:
    rows, columns = np.tril_indices(full.shape[-1])
    return torch.from_numpy(full[..., rows, columns])


@pytest.fixture(scope="session")
def dense():
    """Symmetric matrices (rows, k, k) from their lower triangles (rows, p)."""

    def matrices(packed: Tensor) -> np.ndarray:
        values = np.asarray(packed)
        k = int(np.sqrt(2 * values.shape[-1]))
        rows, columns = np.tril_indices(k)
        full = np.zeros((*values.shape[:-1], k, k), dtype=values.dtype)
        full[..., rows, columns] = full[..., columns, rows] = values
        return full

    return matrices


@pytest.fixture(scope="session")
def draw_state():
    """Draw a :class:`CountState`."""

    def draw(
        n: int, m: int, r: int, *, likelihood: str = "negative_binomial", family: str = "row_block", seed: int = 0
    ) -> CountState:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Tensor:
            return torch.as_tensor(rng.standard_normal(shape))

        def positive(*shape: int) -> Tensor:
            return torch.as_tensor(0.5 + rng.random(shape))

        def covariances(rows: int) -> np.ndarray:
            factor = rng.standard_normal((rows, r + 1, r + 1))
            cov = 0.06 * (factor @ factor.swapaxes(1, 2) + np.eye(r + 1))
            return cov * np.eye(r + 1) if family == "mean_field" else cov

        S, T = covariances(n), covariances(m)
        cells = Cells(0.5 * normal(n, r + 1), triangles(S), 0.3 * normal(n))
        dispersion = 0.5 * positive(m) if COUNTS[likelihood].learns_dispersion else torch.zeros(m, dtype=torch.float64)
        scales = PriorScales(a=positive(), A=positive(r), b=positive(), B=positive(r), fixed=frozenset(NAMES))
        g = CountGlobals(0.5 * positive(), 0.5 * normal(m, r + 1), scales, triangles(T), dispersion)
        rate = (g.mu + cells.log_size[:, None] + 0.7 * normal(n, m)).exp().numpy()
        y = torch.from_numpy(COUNTS[likelihood].sample(rate, dispersion.numpy(), rng).astype(float))
        return CountState(CountProblem(n, m, family, likelihood=COUNTS[likelihood]), likelihood, y, cells, g, S, T)

    return draw


def extended(row: np.ndarray) -> np.ndarray:
    return np.concatenate([[1.0], row[1:]])


@pytest.fixture(scope="session")
def entries():
    """By loops over entries, (n, m) each: eta without the size factor, its variance, rate, weight and score."""

    def of(state: CountState, S: np.ndarray | None = None, T: np.ndarray | None = None) -> dict[str, np.ndarray]:
        S, T = (state.S if S is None else S), (state.T if T is None else T)
        g, cells = state.globals, state.cells
        y, phi, size = state.y.numpy(), g.dispersion.numpy(), cells.log_size.numpy()
        found = {name: np.empty(y.shape) for name in ("eta", "var", "rate", "weight", "score")}
        for i, cell in enumerate(cells.mean.numpy()):
            for j, gene in enumerate(g.gene_mean.numpy()):
                u, v = extended(cell), extended(gene)
                eta = float(g.mu) + cell[0] + gene[0] + cell[1:] @ gene[1:]
                var = u @ T[j] @ u + v @ S[i] @ v + np.trace(S[i][1:, 1:] @ T[j][1:, 1:])
                rate = np.exp(size[i] + eta + var / 2)
                if state.likelihood == "bernoulli":
                    weight = rate**2 / np.expm1(rate)
                    score = y[i, j] * rate / (1 - np.exp(-rate)) - rate
                else:
                    weight = rate / (1 + phi[j] * rate)
                    score = (y[i, j] - rate) / (1 + phi[j] * rate)
                for name, value in zip(found, (eta, var, rate, weight, score), strict=True):
                    found[name][i, j] = value
        return found

    return of


@pytest.fixture
def full_steps(monkeypatch):
    """Steps are taken whole, however far they go."""
    from scvi_lfm.inference import equations

    monkeypatch.setattr(equations, "TRUST", 1e9)


@pytest.fixture(scope="session")
def count_options(fit_options):
    """Options of a quiet fit of counts in float32, with size factors from totals, with changes."""

    def options(values: np.ndarray, **changes):
        totals = np.asarray(values.sum(axis=1), dtype=float).ravel()
        base = fit_options(likelihood="negative_binomial", dtype=torch.float32, log_size=np.log(totals / totals.mean()))
        return replace(base, **changes)

    return options


@pytest.fixture
def fewer_entries(monkeypatch):
    """A recorded objective from fewer entries, for speed."""
    from scvi_lfm.inference.counts import objective

    monkeypatch.setattr(objective, "ENTRIES", 20_000)
