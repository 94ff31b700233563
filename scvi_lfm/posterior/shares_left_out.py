"""Counts of which a share is left out of the posterior's means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SharesLeftOut:
    """Counts of which a share is taken out, in the order of cells."""

    cell: Tensor  # (k,): position
    gene: Tensor  # (k,): position
    share: Tensor  # (k,): between 0 and 1
    seen: Tensor  # (k,): share of its own pull on its own prediction that is still in the posterior

    @classmethod
    def none(cls, cell: Tensor, gene: Tensor) -> SharesLeftOut:
        """Counts of which nothing has been taken out yet."""
        share = torch.zeros(len(cell), dtype=torch.float32, device=cell.device)
        return cls(cell, gene, share, 1 - share)

    def rows(self, cells: slice) -> SharesLeftOut:
        """Counts of some consecutive cells, at their places among these."""
        ends = torch.tensor([cells.start, cells.stop], dtype=self.cell.dtype, device=self.cell.device)
        first, last = torch.searchsorted(self.cell.contiguous(), ends).tolist()
        part = slice(first, last)
        return SharesLeftOut(self.cell[part] - cells.start, self.gene[part], self.share[part], self.seen[part])

    def where(self, chosen: Tensor) -> SharesLeftOut:
        """Counts of a mask."""
        return SharesLeftOut(self.cell[chosen], self.gene[chosen], self.share[chosen], self.seen[chosen])
