r"""Covariances of cells under a count likelihood that were too large to store, computed anew block by block.

.. math:: S_i^{-1} = P^{-1} + \sum_j w_{ij} E[v_j v_j']

The Fisher weights need no counts, only rates, which S_i enters in turn: the fixed point is reached in a few rounds. Of
cells with next to no counts, whose eta varies by more than 1, weights go a share of their way, and do not swing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..linalg.covariances import Covariance, Packed
from ..linalg.packed import mean_variance, pack, unpack
from ..model.likelihoods import LIKELIHOODS
from ..model.priors import free_coordinates, with_known
from .rates import GeneFeatures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..model import Gaussian
    from ..model.noise import CountNoise

CELLS_PER_BLOCK = 512
ROUNDS = 12


@dataclass(frozen=True)
class Recomputed(Covariance):
    """A covariance of its own for each cell, made when it is asked for."""

    is_held = False
    cell_mean: Tensor  # (n, r+1)
    offset: Tensor  # (n,): log size factor plus mu
    features: GeneFeatures
    dispersion: Tensor  # (m,)
    likelihood: str
    prior: Gaussian
    family: str

    @classmethod
    def of(
        cls,
        mu: float,
        cell_mean: Tensor,
        gene_mean: Tensor,
        gene_cov: Packed,
        noise: CountNoise,
        prior: Gaussian,
        family: str,
    ) -> Recomputed:
        """Covariances from the parts of a posterior; `prior` is that of (a, A) given what is known."""
        return cls(
            cell_mean.float(),
            (noise.log_size + mu).float(),
            GeneFeatures.of(gene_mean.float(), gene_cov.values.float()),
            noise.dispersion.float(),
            noise.likelihood,
            prior,
            family,
        )

    def at(self, rows: Tensor | slice) -> Recomputed:
        """Covariances of some rows: a boolean mask, positions or a slice."""
        return replace(self, cell_mean=self.cell_mean[rows], offset=self.offset[rows])

    def blocks(self) -> Iterator[Tensor]:
        """Lower triangles of all rows, by blocks that are solved together."""
        parts = zip(self.cell_mean.split(CELLS_PER_BLOCK), self.offset.split(CELLS_PER_BLOCK), strict=True)
        return (self._solve(mean, offset) for mean, offset in parts)

    def _solve(self, mean: Tensor, offset: Tensor) -> Tensor:
        p = self.features.packed_size
        likelihood = LIKELIHOODS[self.likelihood]
        prior_precision = torch.linalg.inv(self.prior.cov)
        n_known = mean.shape[1] - len(prior_precision)
        free = free_coordinates(mean.shape[1], n_known, mean.device)
        cov, before = mean.new_zeros(len(mean), p), None
        for _ in range(ROUNDS):
            left = self.features.of_cells(mean, cov, offset)
            information = mean.new_zeros(len(mean), p)
            for genes in self.features.blocks(len(mean)):
                rate = self.features.rates(left, genes)
                # which no count changes
                weight, _ = likelihood.weight_and_score(rate, rate, self.dispersion[genes])
                information.addmm_(weight, self.features.equations[genes, :p])
            if before is not None:
                share = 1 / mean_variance(information, cov).clamp_min(1)
                information *= (before / information[:, 0]).pow(1 - share)[:, None]
            before = information[:, 0].clone()
            precision = unpack(information.double())[:, free[:, None], free] + prior_precision
            if self.family == "mean_field":
                precision = torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1))
            cov = pack(with_known(torch.linalg.inv(precision), n_known)).to(mean.dtype)
        return cov

    def packed(self) -> Tensor:
        """Lower triangles, (rows, p)."""
        return torch.cat(list(self.blocks()))

    def made(self) -> Packed:
        """Covariances that are held."""
        return Packed(self.packed())

    def moved(self, linear: Tensor) -> Packed:
        """F S F', made for every cell."""
        return self.made().moved(linear)
