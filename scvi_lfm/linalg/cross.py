r"""Products of low rank, from some of their rows and columns: cross approximation (Goreinov et al. 1997).

.. math::

    L M' \approx L M_s' \, (L_s M_s')^+ \, L_s M'

with :math:`L_s` and :math:`M_s` some rows of L and of M, and the pseudoinverse that of the leading singular values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# singular values below this share of the largest are rounding
TINY = 1e-6


def cross_approximation(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """X and Y, (size, rank) each, so that `(L X) (M Y)'` is nearly `L M'`, from some rows of L and of M, (rows, size).

    They suit rows like these, and are exact where the product of these has no higher rank and spans all others.
    """
    sample = (left @ right.T).double()
    squares, vectors = torch.linalg.eigh(sample @ sample.T)
    values = squares[-rank:].clamp_min(0).sqrt()
    of_rows = vectors[:, -rank:] * torch.where(values > TINY * values[-1], 1 / values, 0.0)
    return right.T @ (sample.T @ of_rows).to(right), left.T @ of_rows.to(left)
