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

import torch

from ..._workers import for_each, in_order
from ...data import column_sums, draw_sample
from ...linalg.packed import ROWS_PER_BLOCK, dimension, root, unpack
from ...model.likelihoods import MAX_LOG_RATE
from ...model.priors import MU_SCALE, free_coordinates
from ...posterior.posterior import extend
from .cell_step import at_genes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...data import CellMatrix
    from ...model import Gaussian
    from .state import Cells, CountGlobals, CountProblem

ENTRIES = 200_000
ENTRIES_PER_BLOCK = 2**14
# with two, a fit of few cells, one of which has an enormous count, may not settle
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
        some = draw_sample(matrix, ENTRIES, rng)
        return cls(
            cell=torch.as_tensor(some.cell, dtype=torch.int64, device=device),
            gene=torch.as_tensor(some.gene, dtype=torch.int64, device=device),
            y=torch.as_tensor(some.y, dtype=torch.float32, device=device),
            weight=torch.as_tensor(some.weight, dtype=torch.float64, device=device),
            n_entries=matrix.n_observed,
        )

    def at_genes(self, genes: Tensor, n_genes: int) -> EntrySample:
        """Entries of some of the genes, by position among `n_genes`, which stand for all entries of these."""
        place = torch.full((n_genes,), -1, dtype=torch.int64, device=genes.device)
        place[genes] = torch.arange(len(genes), dtype=torch.int64, device=genes.device)
        gene = place[self.gene]
        kept = gene >= 0
        weight = self.weight[kept]
        n_entries = self.n_entries * len(genes) // n_genes
        return EntrySample(self.cell[kept], gene[kept], self.y[kept], weight / weight.sum(), n_entries)

    def standard_error(self, values: Tensor) -> float:
        """Standard error of the weighted mean of values (s,) of these entries, for that of all of the block.

        Entries other than zero are drawn without replacement: there is no error where all of them are.
        """
        is_zero = self.y == 0
        left_out = torch.where(is_zero, 1.0, 1 - 1 / (self.weight * self.n_entries).clamp_min(1))
        around = values
        for kind in (is_zero, ~is_zero):
            weight = self.weight * kind
            mean = weight @ values / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
            around = around - mean * kind
        return float((self.weight.square() * left_out * around.square()).sum().sqrt())


def log_densities(
    problem: CountProblem, g: CountGlobals, cells: Cells, sample: EntrySample, cell_draws: Tensor, gene_draws: Tensor
) -> Tensor:
    """Values of log p of the entries, (2 draws, s), at draws (draws, rows, k) around the means of q and opposite."""
    offset, abundance, all_slopes = cells.log_size + g.mu, g.gene_mean[:, 0], extend(g.gene_mean)
    draws = [
        (of_cells, of_genes[:, 0], _without_first(of_genes))
        for of_cells, of_genes in zip(cell_draws, gene_draws, strict=True)
    ]

    def of_block(block: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        i, j, y = block
        cell, slopes = cells.mean.index_select(0, i), all_slopes.index_select(0, j)
        centre = offset[i] + abundance[j] + (cell * slopes).sum(1)
        eta = []
        for of_cells, of_abundance, of_slopes in draws:
            d_cell, d_slopes = of_cells.index_select(0, i), of_slopes.index_select(0, j)
            even = centre + (d_cell * d_slopes).sum(1)
            odd = of_abundance[j] + (cell * d_slopes).addcmul_(d_cell, slopes).sum(1)
            eta += [even + odd, even - odd]
        seen = torch.stack(eta)
        if problem.likelihood.has_rate:
            seen = seen.clamp_(max=MAX_LOG_RATE).exp_()
        return problem.likelihood.log_density(y, seen, *at_genes(g.parameters, j))

    parts = (values.split(ENTRIES_PER_BLOCK) for values in (sample.cell, sample.gene, sample.y))
    return torch.cat(list(in_order(of_block, zip(*parts, strict=True))), dim=1)


def _without_first(draws: Tensor) -> Tensor:
    """Draws of (b, B) as those of v = (1, B), (m, k)."""
    draws = draws.clone()
    draws[:, 0] = 0
    return draws


def draws_and_log_dets(cov: Tensor, generator: torch.Generator, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Differences from their means of rows with packed covariances (n, p), (draws, n, k), and their log determinants.

    What is known has no variance, and is left out of the determinants.
    """
    n, k = len(cov), dimension(cov.shape[1])
    shape = (n, width or k, PAIRS_OF_DRAWS)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)[:, :k].to(cov)
    draws, log_dets = cov.new_empty(PAIRS_OF_DRAWS, n, k), cov.new_empty(n, dtype=torch.float64)

    def of_block(rows: slice) -> None:
        factor = root(unpack(cov[rows]).double())
        diagonals = factor.diagonal(dim1=-2, dim2=-1)
        draws[:, rows] = (factor.to(cov.dtype) @ noise[rows]).movedim(2, 0)
        log_dets[rows] = 2 * torch.where(diagonals > 0, diagonals, 1).log().sum(1)

    for_each(of_block, (slice(start, start + ROWS_PER_BLOCK) for start in range(0, n, ROWS_PER_BLOCK)))
    return draws, log_dets


def elbo_per_entry(
    problem: CountProblem,
    g: CountGlobals,
    cells: Cells,
    priors: tuple[Gaussian, Gaussian],
    sample: EntrySample,
    seed: int,
) -> float:
    """ELBO over the number of entries that are data, from the cells of one block; priors of cells and genes."""
    return elbo_of_entries(problem, g, cells, priors, sample, seed)[0]


def elbo_of_entries(
    problem: CountProblem,
    g: CountGlobals,
    cells: Cells,
    priors: tuple[Gaussian, Gaussian],
    sample: EntrySample,
    seed: int,
    width: int | None = None,
) -> tuple[float, Tensor]:
    """ELBO as of :func:`elbo_per_entry`, and E log p (s,) of the entries that it was estimated from.

    `width` random numbers are drawn for a row, at least as many as it has latents: with the same width, models of
    fewer factors get the same ones.
    """
    generator = torch.Generator().manual_seed(seed)
    cell_draws, cell_log_det = draws_and_log_dets(cells.cov, generator, width)
    gene_draws, gene_log_det = draws_and_log_dets(g.gene_cov, generator, width)
    kl_cells = kl_rows(cells.mean, cells.cov, cell_log_det, priors[0])
    kl_genes = kl_rows(g.gene_mean, g.gene_cov, gene_log_det, priors[1]) + kl_mu(g)
    values = log_densities(problem, g, cells, sample, cell_draws, gene_draws)
    data = (values @ sample.weight).mean()
    return float(data - kl_cells / sample.n_entries - kl_genes / problem.n_entries), values.mean(0)


def kl_rows(mean: Tensor, cov: Tensor, log_det: Tensor, prior: Gaussian) -> Tensor:
    """KL of Normal rows with packed covariances from a prior, summed; what the prior leaves out is known.

    `log_det` (rows,) holds the logarithms of the determinants of the covariances, without what is known.
    """
    precision, n_known = torch.linalg.inv(prior.cov), mean.shape[1] - len(prior.mean)
    free = free_coordinates(mean.shape[1], n_known, mean.device)
    centred = mean[:, free].double() - prior.means(mean[:, 1 : 1 + n_known].double())
    total_cov = unpack(column_sums(cov))[free[:, None], free]
    n, k = centred.shape
    expected_square = (total_cov * precision).sum() + ((centred @ precision) * centred).sum()
    return 0.5 * (expected_square - log_det.sum() - n * k + n * torch.logdet(prior.cov))


def kl_mu(g: CountGlobals) -> Tensor:
    """KL of q(mu) from its prior, the variance of q left out: mu is known to many digits."""
    return 0.5 * (g.mu / MU_SCALE).square()
