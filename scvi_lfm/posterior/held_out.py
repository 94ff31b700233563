r"""How well entries that were held out are predicted.

.. math::

    \frac{1}{|\mathcal H|} \sum_{(i, j) \in \mathcal H} \log p(y_{ij} \mid \text{fit}), \qquad
    \left( \frac{1}{|\mathcal H|} \sum_{(i, j) \in \mathcal H} (y_{ij} - E y_{ij})^2 \right)^{1/2}

under the predictive distribution, in which the uncertainty of eta is integrated out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._workers import in_order
from ..data.blocks import slices
from .predictive import EntryPredictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import HeldOut
    from .posterior import Posterior


CELLS_PER_BLOCK = 1024


@dataclass(frozen=True)
class Score:
    """Sums over entries that were held out; they add up over blocks of cells."""

    log_density: Tensor  # ()
    square: Tensor  # ()
    n: int

    def plus(self, other: Score) -> Score:
        """Sums over both sets of entries."""
        return Score(self.log_density + other.log_density, self.square + other.square, self.n + other.n)

    @property
    def means(self) -> tuple[float, float]:
        """Log density per entry, and root mean square error."""
        return float(self.log_density / max(self.n, 1)), float((self.square / max(self.n, 1)).sqrt())


ZERO = torch.zeros((), dtype=torch.float32, device="cpu")
NOTHING = Score(ZERO, ZERO, 0)


def score_held_out(q: Posterior, held_out: HeldOut) -> Score:
    """Score the entries, whose cells and genes are rows of q."""
    if not len(held_out.y):
        return NOTHING
    device = q.cell_mean.device
    cells, genes, y = (torch.as_tensor(part, device=device) for part in (held_out.cell, held_out.gene, held_out.y))
    predictor = EntryPredictor(q)

    def of_block(block: slice) -> Score:
        first, last = np.searchsorted(held_out.cell, (block.start, block.stop))
        cell, gene, value = cells[first:last], genes[first:last], y[first:last]
        law = q.law(predictor.moments(block, cell, gene), cell, gene)
        return Score(law.log_density(value).sum(), (value - law.mean()).square().sum(), len(value))

    return functools.reduce(Score.plus, in_order(of_block, slices(len(q.cell_mean), 0, size=CELLS_PER_BLOCK)))
