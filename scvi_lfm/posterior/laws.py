"""Predictive laws of values: one record for each kind of likelihood, which answer the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ..model.likelihoods import normal, student_t
from .posterior import CountPosterior
from .predictive_counts import predictive_counts
from .predictive_student_t import log_density, quantile

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .posterior import NormalPosterior
    from .predictive import BlockPredictor, Moments


class Law(Protocol):
    """Distributions of the values of some entries, with the uncertainty of eta integrated out."""

    def mean(self) -> Tensor:
        """Expected values."""

    def variance(self) -> Tensor:
        """Variances."""

    def log_density(self, y: Tensor) -> Tensor:
        """Log density, or log probability, of values."""

    def quantile(self, level: float) -> np.ndarray:
        """Least values whose probability, with those below them, is at least `level`."""


@dataclass(frozen=True)
class NormalLaw:
    """Normals: that of eta, and noise of the standard deviations sigma."""

    eta: Moments
    sigma: Tensor

    def mean(self) -> Tensor:
        """Expected values."""
        return self.eta.mean

    def variance(self) -> Tensor:
        """Variances."""
        return self.eta.var + self.sigma.square()

    def log_density(self, y: Tensor) -> Tensor:
        """Log density of values."""
        return normal.log_density(y, self.mean(), self.variance())

    def quantile(self, level: float) -> np.ndarray:
        """Values below which lies a share `level`."""
        z = torch.special.ndtri(torch.tensor(level, dtype=torch.float64, device="cpu"))
        return (self.mean() + z * self.variance().sqrt()).numpy()


@dataclass(frozen=True)
class StudentTLaw:
    """Sums of the Normal of eta and a Student t of scales sigma."""

    eta: Moments
    sigma: Tensor
    df: float

    def mean(self) -> Tensor:
        """Expected values."""
        return self.eta.mean

    def variance(self) -> Tensor:
        """Variances."""
        return self.eta.var + student_t.variance(self.sigma, self.df)

    def log_density(self, y: Tensor) -> Tensor:
        """Log density of values."""
        return log_density(y, self.eta, self.sigma, self.df)

    def quantile(self, level: float) -> np.ndarray:
        """Values below which lies a share `level`."""
        return quantile(level, self.eta, self.sigma, self.df)


def law_of_pairs(q: NormalPosterior | CountPosterior, eta: Moments, cells: Tensor, genes: Tensor) -> Law:
    """Laws of cell `cells[k]` with gene `genes[k]`, from moments of eta (pairs,)."""
    if isinstance(q, CountPosterior):
        return predictive_counts(q, eta, genes)
    sigma = q.noise.of_pairs(cells, genes)
    return NormalLaw(eta, sigma) if q.noise.df is None else StudentTLaw(eta, sigma, q.noise.df)


def expected(q: NormalPosterior | CountPosterior, eta: Moments, genes: Tensor) -> Tensor:
    """Expected values of entries with these moments of eta, of the genes at some positions."""
    return predictive_counts(q, eta, genes).mean() if isinstance(q, CountPosterior) else eta.mean


def expected_block(q: NormalPosterior | CountPosterior, predictor: BlockPredictor, cells: slice | Tensor) -> Tensor:
    """Expected values of some cells with all genes, (cells, m); the variance of eta is found only where it matters."""
    if not isinstance(q, CountPosterior):
        return predictor.mean(cells)
    return expected(q, predictor.moments(cells), torch.arange(len(q.gene_mean), device=q.gene_mean.device))
