"""Scores of entries under the two anomaly questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

# a distance that stands for "not asked about"
NOT_ASKED = -1.0


@dataclass(frozen=True)
class Scores:
    """Scores of a block of entries, (cells, m)."""

    expected: Tensor  # mean of the predictive
    distance: Tensor  # standardised, in the direction asked for; negative: not of that direction
    log_ratio: Tensor  # log p(y | other cells) - log p(y | own); -inf: not of that direction

    def at(self, observed: Tensor | None) -> Self:
        """The scores with none for entries that were not observed."""
        if observed is None:
            return self
        return replace(
            self,
            distance=self.distance.masked_fill(~observed, NOT_ASKED),
            log_ratio=self.log_ratio.masked_fill(~observed, -torch.inf),
        )
