r"""Expected rates of counts, by blocks of cells and genes.

.. math::

    \lambda_{ij} = s_i \exp\left(\mu + b_j + (a_i, A_i) \cdot v_j + \tfrac12 \mathrm{var}_{ij}\right), \qquad
    \mathrm{var}_{ij} = u_i' T_j u_i + v_j' S_i v_j + \mathrm{tr}(S_{AA,i} T_{BB,j})

The variance is one product of packed matrices, because :math:`v' S v + \mathrm{tr}(S_{AA} T_{BB}) = \langle S, E[v v']
\rangle` and :math:`u' T u = \langle T, u u' \rangle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .._workers import even_blocks, for_each
from ..linalg.packed import ROWS_PER_BLOCK, doubled, first_column, outer, packed_size, slope_moments
from ..model.likelihoods.base import MAX_LOG_RATE
from .posterior import extend

if TYPE_CHECKING:
    from torch import Tensor

# entries worked on at a time: few enough to stay in a core's own cache, many enough to be worth an operation
ENTRIES_PER_BLOCK = 2**19
# on a GPU: few enough for several arrays of them
ENTRIES_PER_GPU_BLOCK = 2**27


@dataclass(frozen=True)
class GeneFeatures:
    """Features of genes for rates and for the normal equations of cells."""

    mean: Tensor  # (m, r+1): (b, B)
    slopes: Tensor  # (m, r+1): v = (1, B)
    moments: Tensor  # (m, 2p + r+1): packed T, packed E[v v'], E[b v]

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

        for_each(fill, (slice(start, start + ROWS_PER_BLOCK) for start in range(0, m, ROWS_PER_BLOCK)))
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
        """`var_ij / 2`, (cells, genes), from :func:`cell_features`; put into `out` if it is given."""
        return torch.mm(cell_features, self.moments[genes, : 2 * self.packed_size].T, out=out)


def cell_features(mean: Tensor, cov: Tensor) -> Tensor:
    """Features of cells for half the variance, (cells, 2p): packed `u u'` and S, both over 2."""
    weights = doubled(mean.shape[1], mean) / 2
    return torch.cat([outer(extend(mean)) * weights, cov * weights], dim=1)


def rates(linear: Tensor, half_variance: Tensor, offset: Tensor) -> Tensor:
    """Expected rates, (cells, genes), from log size factor plus mu as `offset` (cells,)."""
    return (linear + half_variance).add_(offset[:, None]).clamp_(max=MAX_LOG_RATE).exp_()
