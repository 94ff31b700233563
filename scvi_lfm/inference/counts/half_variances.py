r"""Half the variances of eta of a batch, exact or in few directions.

Covariances are inverses of what many counts have told, and differ from row to row in few directions: with :math:`D`
those of the cells' :math:`S_i`, orthonormal columns (p, q),

.. math:: \langle S_i, E[v_j v_j'] \rangle \approx \langle D D' S_i, E[v_j v_j'] \rangle
    = (D' S_i) \cdot (D' E[v_j v_j'])

is a product of q features for p, and so is :math:`\langle T_j, u_i u_i' \rangle` with the directions of the genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...posterior.rates import cell_features

if TYPE_CHECKING:
    from torch import Tensor

    from ...posterior.rates import GeneFeatures
    from .state import Cells

# of covariances of one side: more than these leave no more than a thousandth of a log rate
DIRECTIONS = 16
# rows that tell of them
ROWS = 256


@dataclass(frozen=True)
class HalfVariances:
    """What half the variances of eta of some cells with all genes are computed from."""

    features: GeneFeatures
    left: Tensor  # (cells, 2p) as of `cell_features`, or (cells, 2q): their parts along the directions
    of_genes: Tensor | None = None  # (p, q): directions of T; None: exact
    of_cells: Tensor | None = None  # (p, q): directions of S

    @classmethod
    def of(cls, features: GeneFeatures, cells: Cells, *, approximate: bool = False) -> HalfVariances:
        """From q of some cells; `approximate` takes few directions where that is less work."""
        left, p = cell_features(cells.mean, cells.cov), features.packed_size
        if not approximate or DIRECTIONS * (1 / len(left) + 1 / p) > 1 / 2:
            return cls(features, left)
        of_genes, of_cells = leading_directions(features.moments[:, :p]), leading_directions(left[:, p:])
        return cls(features, torch.cat([left[:, :p] @ of_genes, left[:, p:] @ of_cells], dim=1), of_genes, of_cells)

    def at(self, genes: slice, out: Tensor | None = None) -> Tensor:
        """Those with some genes, (cells, genes); put into `out` if it is given."""
        if self.of_genes is None or self.of_cells is None:
            return self.features.half_variance(self.left, genes, out)
        moments, p = self.features.moments[genes], self.features.packed_size
        right = torch.cat([moments[:, :p] @ self.of_genes, moments[:, p : 2 * p] @ self.of_cells], dim=1)
        return torch.mm(self.left, right.T, out=out)


def leading_directions(rows: Tensor) -> Tensor:
    """Orthonormal directions (p, q) in which rows (n, p) are large: power steps on some of them."""
    some = rows[:: max(len(rows) // ROWS, 1)].double()
    begun = some[:: max(len(some) // DIRECTIONS, 1)][:DIRECTIONS]
    return torch.linalg.qr(some.T @ (some @ begun.T))[0].to(rows.dtype)
