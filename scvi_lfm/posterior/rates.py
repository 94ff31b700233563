r"""Expected rates of counts, by blocks of cells and genes.

.. math::

    \lambda_{ij} = s_i \exp\left(\mu + b_j + (a_i, A_i) \cdot v_j + \tfrac12 \mathrm{var}_{ij}\right), \qquad
    \mathrm{var}_{ij} = u_i' T_j u_i + v_j' S_i v_j + \mathrm{tr}(S_{AA,i} T_{BB,j})

The variance is one product of packed matrices, because :math:`v' S v + \mathrm{tr}(S_{AA} T_{BB}) = \langle S, E[v v']
\rangle` and :math:`u' T u = \langle T, u u' \rangle`. Covariances are inverses of what many entries have told, and
differ from row to row in few directions: with :math:`\Gamma`, orthonormal columns (p, q), those of S,

.. math:: \langle S_i, E[v_j v_j'] \rangle \approx (\Gamma' S_i) \cdot (\Gamma' E[v_j v_j'])

is a product of q features for p, and so is :math:`\langle T_j, u_i u_i' \rangle`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .._workers import even_blocks, in_order
from ..linalg.packed import ROWS_PER_BLOCK, doubled, first_column, outer, packed_size, slope_moments
from ..model.likelihoods.base import MAX_LOG_RATE
from .posterior import extend

if TYPE_CHECKING:
    from torch import Tensor

# entries worked on at a time: few enough to stay in a core's own cache, many enough to be worth an operation
ENTRIES_PER_BLOCK = 2**19
# on a GPU: few enough for several arrays of them
ENTRIES_PER_GPU_BLOCK = 2**27
# of covariances: with these rates are right to about a thousandth, and triangles hold many times more values
DIRECTIONS = 16
# rows that tell of them
ROWS = 256


@dataclass(frozen=True)
class FewDirections:
    """Directions in which covariances differ, and what half the variances need of genes along them."""

    of_genes: Tensor  # (p, q)
    of_cells: Tensor  # (p, q): for covariances whose values off the diagonal are doubled
    moments: Tensor  # (m, 2q): of T, of E[v v']


@dataclass(frozen=True)
class GeneFeatures:
    """Features of genes for rates and for the normal equations of cells."""

    mean: Tensor  # (m, r+1): (b, B)
    slopes: Tensor  # (m, r+1): v = (1, B)
    moments: Tensor  # (m, 2p + r+1): packed T, packed E[v v'], E[b v]
    few: FewDirections | None = None  # half the variances are exact without

    @classmethod
    def of(cls, mean: Tensor, cov: Tensor) -> GeneFeatures:
        """Features from means (m, r+1) and packed covariances (m, p) of (b, B)."""
        m, k, p = *mean.shape, cov.shape[1]
        slopes, first = extend(mean), first_column(k, cov.device)
        moments = cov.new_empty(m, 2 * p + k)

        def fill(genes: slice) -> None:
            here, spread, some = moments[genes], cov[genes], slopes[genes]
            here[:, :p], here[:, p : 2 * p] = spread, slope_moments(some, spread)
            with_abundance = torch.addcmul(spread[:, first], mean[genes, :1], some)
            with_abundance[:, 0] = mean[genes, 0]  # b meets the 1 of v, which has no variance
            here[:, 2 * p :] = with_abundance

        for _ in in_order(fill, (slice(start, start + ROWS_PER_BLOCK) for start in range(0, m, ROWS_PER_BLOCK))):
            pass
        return cls(mean, slopes, moments)

    @property
    def packed_size(self) -> int:
        """Values in a packed matrix."""
        return packed_size(self.mean.shape[1])

    def blocks(self, n_cells: int) -> list[slice]:
        """Blocks of genes of a size that suits so many cells."""
        m = len(self.mean)
        n_entries = ENTRIES_PER_BLOCK if self.mean.device.type == "cpu" else ENTRIES_PER_GPU_BLOCK
        return even_blocks(m, max(256, n_entries // max(n_cells, 1)), self.mean.device)

    def linear(self, cell_mean: Tensor, genes: slice) -> Tensor:
        """`b_j + (a_i, A_i) . v_j`, (cells, genes)."""
        return torch.addmm(self.mean[genes, 0], cell_mean, self.slopes[genes].T)

    def half_variance(self, cell_features: Tensor, genes: slice, out: Tensor | None = None) -> Tensor:
        """`var_ij / 2`, (cells, genes), from :meth:`of_cells`; put into `out` if it is given."""
        moments = self.moments[genes, : 2 * self.packed_size] if self.few is None else self.few.moments[genes]
        return torch.mm(cell_features, moments.T, out=out)

    def of_cells(self, mean: Tensor, cov: Tensor) -> Tensor:
        """Features of cells for half the variance: those of :func:`cell_features`, or along few directions."""
        whole, few, p = cell_features(mean, cov), self.few, self.packed_size
        return whole if few is None else torch.cat([whole[:, :p] @ few.of_genes, whole[:, p:] @ few.of_cells], dim=1)

    def in_few_directions(self, of_cells: Tensor | None) -> GeneFeatures:
        """Features for half the variances in few directions, if those of cells (p, q) are known and it is less work."""
        p = self.packed_size
        if of_cells is None or p < 4 * DIRECTIONS:
            return self
        of_genes, weights = leading_directions(self.moments[:, :p]), doubled(self.mean.shape[1], of_cells)[:, None]
        moments = torch.cat([self.moments[:, :p] @ of_genes, self.moments[:, p : 2 * p] @ (of_cells * weights)], dim=1)
        return replace(self, few=FewDirections(of_genes, of_cells / weights, moments))


def cell_features(mean: Tensor, cov: Tensor) -> Tensor:
    """Features of cells for half the variance, (cells, 2p): packed `u u'` and S, both over 2."""
    weights = doubled(mean.shape[1], mean) / 2
    return torch.cat([outer(extend(mean)) * weights, cov * weights], dim=1)


def leading_directions(cov: Tensor) -> Tensor:
    """Orthonormal directions (p, q) in which packed covariances (rows, p) are large: a power step on some of them."""
    some = cov[:: max(len(cov) // ROWS, 1)].double()
    begun = some[:: max(len(some) // DIRECTIONS, 1)][:DIRECTIONS]
    return torch.linalg.qr(some.T @ (some @ begun.T))[0].to(cov.dtype)


def rates(linear: Tensor, half_variance: Tensor, offset: Tensor) -> Tensor:
    """Expected rates, (cells, genes), from log size factor plus mu as `offset` (cells,)."""
    return (linear + half_variance).add_(offset[:, None]).clamp_(max=MAX_LOG_RATE).exp_()
