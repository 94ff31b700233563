r"""The recorded objective: a Monte Carlo estimate of the ELBO, with the divergences in closed form.

.. math::

    \mathrm{ELBO} = \sum_{ij} E_q \log p(y_{ij} \mid \eta_{ij}) - \mathrm{KL}(q(\mu) \| p)
        - \sum_i \mathrm{KL}(q(a_i, A_i) \| p) - \sum_j \mathrm{KL}(q(b_j, B_j) \| p)

The expectation is taken over antithetic draws of whole rows, with the same random numbers at every call, and over a
fixed sample of entries: half from those that are not zero, half from the zeros; where only stored entries are data,
from all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...model.priors import MU_SCALE
from ...posterior.packed import root, unpack
from ...posterior.posterior import extend
from .cell_step import kl_rows

if TYPE_CHECKING:
    from torch import Tensor

    from ...data import CellMatrix
    from ...model import Gaussian
    from .state import Cells, Globals, Problem

ENTRIES = 200_000
PAIRS_OF_DRAWS = 4


@dataclass(frozen=True)
class EntrySample:
    """Entries of a block of cells, each with the number of entries that it stands for, over all of them."""

    cell: Tensor  # (s,): position among the block's cells
    gene: Tensor  # (s,)
    y: Tensor  # (s,)
    weight: Tensor  # (s,): sums to 1
    n_entries: int  # of the block, that are data

    @classmethod
    def draw(cls, matrix: CellMatrix, device: torch.device, rng: np.random.Generator) -> EntrySample:
        """Draw from the counts (cells, m) of a block, in memory, those that are data."""
        values, observed = matrix.values, matrix.observed
        n, m = values.shape
        if observed is not None and observed.only:
            pattern = observed.pattern
            at = np.sort(rng.permutation(pattern.nnz)[:ENTRIES])
            cell, gene = np.searchsorted(pattern.indptr, at, side="right") - 1, pattern.indices[at]
            weight = np.full(len(at), 1 / max(len(at), 1))
        else:
            half = min(ENTRIES // 2, n * m)
            row, col = values.nonzero()
            some = rng.permutation(len(row))[:half]
            cell, gene = rng.integers(n, size=half), rng.integers(m, size=half)
            zero = np.asarray(values[cell, gene]).ravel() == 0
            if observed is not None:
                zero &= np.asarray(observed.pattern[cell, gene]).ravel() == 0
            n_zero, share = int(zero.sum()), len(row) / matrix.n_observed
            weights = np.full(len(some), share / max(len(some), 1)), np.full(n_zero, (1 - share) / max(n_zero, 1))
            cell, gene, weight = np.append(row[some], cell[zero]), np.append(col[some], gene[zero]), np.append(*weights)
        y = np.asarray(values[cell, gene], dtype=np.float32).ravel()
        return cls(
            cell=torch.as_tensor(cell, dtype=torch.int64, device=device),
            gene=torch.as_tensor(gene, dtype=torch.int64, device=device),
            y=torch.as_tensor(y, device=device),
            weight=torch.as_tensor(weight, device=device),
            n_entries=matrix.n_observed,
        )


def expected_log_density(
    problem: Problem,
    g: Globals,
    cells: Cells,
    sample: EntrySample,
    generator: torch.Generator,
    width: int | None = None,
) -> Tensor:
    """Mean over all entries of the block of E log p, estimated.

    `width` random numbers are drawn for a row, at least as many as it has latents: with the same width, models of
    fewer factors get the same ones.
    """
    cell_root = root(unpack(cells.cov.double())).to(cells.mean.dtype)
    gene_root = torch.linalg.cholesky(unpack(g.gene_cov.double())).to(g.gene_mean.dtype)
    offset = (cells.log_size + g.mu)[sample.cell]
    total = offset.new_zeros((), dtype=torch.float64)
    for _ in range(PAIRS_OF_DRAWS):
        cell_noise = _spread(cell_root, generator, width)
        gene_noise = _spread(gene_root, generator, width)
        for sign in (1, -1):
            cell, gene = cells.mean + sign * cell_noise, g.gene_mean + sign * gene_noise
            eta = offset + gene[sample.gene, 0] + (cell[sample.cell] * extend(gene)[sample.gene]).sum(1)
            rate, phi = eta.clamp(max=30).exp(), g.dispersion[sample.gene]
            total += sample.weight @ problem.likelihood.log_density(sample.y, rate, phi)
    return total / (2 * PAIRS_OF_DRAWS)


def _spread(factor: Tensor, generator: torch.Generator, width: int | None) -> Tensor:
    n, k = factor.shape[:2]
    noise = torch.randn((n, width or k), generator=generator, dtype=torch.float32)[:, :k].to(factor)
    return (factor @ noise[..., None])[..., 0]


def elbo_per_entry(
    problem: Problem,
    g: Globals,
    cells: Cells,
    priors: tuple[Gaussian, Gaussian],
    sample: EntrySample,
    seed: int,
    width: int | None = None,
) -> float:
    """ELBO over the number of entries that are data, from the cells of one block; priors of cells and genes."""
    generator = torch.Generator().manual_seed(seed)
    kl_cells = kl_rows(cells.mean, cells.cov, priors[0])
    kl_genes = kl_rows(g.gene_mean, g.gene_cov, priors[1]) + kl_mu(g)
    data = expected_log_density(problem, g, cells, sample, generator, width)
    return float(data - kl_cells / sample.n_entries - kl_genes / problem.n_entries)


def kl_mu(g: Globals) -> Tensor:
    """KL of q(mu) from its prior, the variance of q left out: mu is known to many digits."""
    return 0.5 * (g.mu / MU_SCALE).square()
