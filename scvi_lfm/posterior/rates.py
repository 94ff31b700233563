r"""Expected rates of counts, by blocks of cells and genes.

.. math::

    \lambda_{ij} = s_i \exp\left(\mu + b_j + (a_i, A_i) \cdot v_j + \tfrac12 \mathrm{var}_{ij}\right), \qquad
    \mathrm{var}_{ij} = u_i' T_j u_i + v_j' S_i v_j + \mathrm{tr}(S_{AA,i} T_{BB,j})

The variance is a product of packed matrices, because :math:`v' S v + \mathrm{tr}(S_{AA} T_{BB}) = \langle S, E[v v']
\rangle` and :math:`u' T u = \langle T, u u' \rangle`, and the whole exponent is one product of features of cells and
of genes. Variances of many entries have a low rank, nearly: :meth:`GeneFeatures.of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from .._workers import even_blocks, for_each, meanwhile
from ..linalg.cross import cross_approximation
from ..linalg.packed import LINE, ROWS_PER_BLOCK, doubled, first_column, outer, packed_size, slope_moments, whole_lines
from ..model.likelihoods.base import MAX_LOG_RATE
from .posterior import extend

if TYPE_CHECKING:
    from torch import Tensor

# entries worked on at a time: few enough to stay in a core's own cache, many enough to be worth an operation
ENTRIES_PER_BLOCK = 2**19
# on a GPU: few enough for several arrays of them
ENTRIES_PER_GPU_BLOCK = 2**27
# the rank of variances for each latent, the cells that tell it for each rank, and the genes for each of these
RANK, CELLS, GENES = 2, 3, 4
# a rank above this share of the full one, or so large a share of the genes, would not be worth while
WORTHWHILE = 0.25


@dataclass(frozen=True)
class GeneFeatures:
    """Features of genes for rates and for the normal equations of cells, of k = 1 + r latents each."""

    rate: Tensor  # (m, 2 + k + q): 1, b, v, and what half variances are products of
    equations: Tensor  # (m, p + k), or wider by zeros: packed E[v v'], E[b v]
    n_latents: int
    basis: Tensor | None = None  # (2p, q): what variances need of a cell's features; None: all of them, q = 2p

    @classmethod
    def of(cls, mean: Tensor, cov: Tensor, cells: tuple[Tensor, Tensor] | None = None) -> GeneFeatures:
        """Features from means (m, k) and packed covariances (m, p) of (b, B).

        For a fraction of the work variances are nearly right, for `cells` like those with these means (cells, k) and
        packed covariances (cells, p); all else is as it would be, and so is everything where genes or latents are few.
        """
        m, k, p = *mean.shape, cov.shape[1]
        first = first_column(k, cov.device)
        bases = meanwhile(partial(_bases, mean, cov, cells))
        equations = cov.new_empty(m, whole_lines(p + k))

        def fill_equations(genes: slice) -> None:
            spread, b, v = cov[genes], mean[genes, :1], extend(mean[genes])
            parts = slope_moments(v, spread), torch.addcmul(spread[:, first], b, v)
            torch.cat([*parts, b.new_zeros(len(b), equations.shape[1] - p - k)], dim=1, out=equations[genes])
            equations[genes, p] = b[:, 0]  # b meets the 1 of v, which has no variance

        for_each(fill_equations, _blocks_of_rows(m))
        from_cells, from_genes = bases()
        rate = cov.new_empty(m, 2 + k + (2 * p if from_genes is None else from_genes.shape[1]))

        def fill_rate(genes: slice) -> None:
            b, of_variance = mean[genes, :1], [cov[genes], equations[genes, :p]]
            if from_genes is not None:
                of_variance = [torch.cat(of_variance, dim=1) @ from_genes]
            torch.cat([torch.ones_like(b), b, extend(mean[genes]), *of_variance], dim=1, out=rate[genes])

        for_each(fill_rate, _blocks_of_rows(m))
        return cls(rate, equations, k, from_cells)

    @property
    def packed_size(self) -> int:
        """Values in a packed matrix."""
        return packed_size(self.n_latents)

    def blocks(self, n_cells: int) -> list[slice]:
        """Blocks of genes of a size that suits so many cells."""
        n_entries = ENTRIES_PER_BLOCK if self.rate.device.type == "cpu" else ENTRIES_PER_GPU_BLOCK
        return even_blocks(len(self.rate), max(256, n_entries // max(n_cells, 1)), self.rate.device, LINE)

    def of_cells(self, mean: Tensor, cov: Tensor, offset: Tensor) -> Tensor:
        """Features of cells to go with these, (cells, 2 + k + q); `offset` (cells,) is the log size factor plus mu."""
        of_variance = cell_features(mean, cov)
        if self.basis is not None:
            of_variance = of_variance @ self.basis
        return torch.cat([offset[:, None], torch.ones_like(mean[:, :1]), mean, of_variance], dim=1)

    def slopes(self, genes: slice) -> Tensor:
        """Means of v = (1, B), (genes, k)."""
        return self.rate[genes, 2 : 2 + self.n_latents]

    def linear(self, cells: Tensor, genes: slice) -> Tensor:
        """`b_j + (a_i, A_i) . v_j`, (cells, genes), from :meth:`of_cells`."""
        some = slice(1, 2 + self.n_latents)
        return cells[:, some] @ self.rate[genes, some].T

    def eta(self, cells: Tensor, genes: slice) -> Tensor:
        """Means of eta, size factors in them, (cells, genes)."""
        some = slice(2 + self.n_latents)
        return cells[:, some] @ self.rate[genes, some].T

    def half_variance(self, cells: Tensor, genes: slice) -> Tensor:
        """`var_ij / 2`, (cells, genes)."""
        some = slice(2 + self.n_latents, None)
        return cells[:, some] @ self.rate[genes, some].T

    def log_rate(self, cells: Tensor, genes: slice) -> Tensor:
        """Logs of expected rates, (cells, genes)."""
        return cells @ self.rate[genes].T

    def rates(self, cells: Tensor, genes: slice) -> Tensor:
        """Expected rates, (cells, genes)."""
        return rates(self.log_rate(cells, genes))


def n_looked_at(n_latents: int) -> int:
    """Number of cells that tell enough of cells like them."""
    return CELLS * RANK * n_latents


def _bases(mean: Tensor, cov: Tensor, cells: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """What variances need of the features of cells and of genes, (2p, q) each; None where it is not worth while."""
    m, k, p = *mean.shape, cov.shape[1]
    rank, n_genes = RANK * k, GENES * n_looked_at(k)
    if cells is None or rank > WORTHWHILE * 2 * p or n_genes > WORTHWHILE * m:
        return None, None
    some = evenly(m, n_genes, mean.device)
    of_genes = torch.cat([cov[some], slope_moments(extend(mean[some]), cov[some])], dim=1)
    return cross_approximation(cell_features(*cells), of_genes, rank)


def cell_features(mean: Tensor, cov: Tensor) -> Tensor:
    """Features of cells for half the variance, (cells, 2p): packed `u u'` and S, both over 2."""
    weights = doubled(mean.shape[1], mean) / 2
    return torch.cat([outer(extend(mean)) * weights, cov * weights], dim=1)


def rates(log_rate: Tensor) -> Tensor:
    """Rates from their logs, which are lost."""
    return log_rate.clamp_(max=MAX_LOG_RATE).exp_()


def _blocks_of_rows(n: int) -> list[slice]:
    return [slice(start, start + ROWS_PER_BLOCK) for start in range(0, n, ROWS_PER_BLOCK)]


def evenly(n: int, count: int, device: torch.device) -> Tensor:
    """Positions among n, at most `count` of them, evenly spaced."""
    count = min(n, count)
    return torch.arange(count, device=device) * n // max(count, 1)
