"""ELBOs that have no closed form, averaged over draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from ...data import Batch
    from ..minibatches import Minibatches


LAST_ENTRIES = 2**22


def in_order(batches: Minibatches) -> Iterator[tuple[Tensor, Batch]]:
    """Positions and blocks of every cell once, in the order of the matrix."""
    start = 0
    for batch in batches.in_order():
        yield torch.arange(start, start + batch.n_cells, device=batch.device), batch
        start += batch.n_cells


def mean_elbo(batches: Minibatches, loss: Callable[[Tensor, Batch], float]) -> float:
    """ELBO per entry; `loss` estimates the negative ELBO of all cells from a block of them."""
    n_cells, n_genes = batches.matrix.shape
    with torch.no_grad():
        total = -sum(loss(rows, batch) * batch.n_cells for rows, batch in in_order(batches))
    return total / (n_cells**2 * n_genes)


def last_draws(batches: Minibatches, fewest: int, most: int) -> int:
    """Draws for the last ELBO: as many as visit `LAST_ENTRIES`, within bounds."""
    n_cells, n_genes = batches.matrix.shape
    return min(max(LAST_ENTRIES // (n_cells * n_genes), fewest), most)
