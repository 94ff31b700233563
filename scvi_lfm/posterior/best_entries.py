r"""The best entries of each row that have not been seen, found block by block.

They are ordered by the expected value, or by an upper bound of eta,

.. math:: E[\eta_{ij}] + \Phi^{-1}(\mathrm{level}) \, \mathrm{var}(\eta_{ij})^{1/2}

whose second part is what is not known of the entry. The likelihood's own noise, which no choice changes, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from .._memory import naming_memory
from .._workers import in_order
from ..data.blocks import slices
from .dense_blocks import block_size
from .predictive import BlockPredictor, eta_of_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..data import CellSource
    from .posterior import Moments, Posterior


@dataclass(frozen=True)
class Chosen:
    """Entries, those of a row together and the best first."""

    rows: Tensor  # (k,): positions among the rows that were asked for
    genes: Tensor  # (k,): positions among the genes of the posterior
    eta: Moments


@naming_memory("recommend", "Pass fewer obs_names, or a smaller n_top")
def best_unseen(q: Posterior, cells: np.ndarray, seen: CellSource, n_top: int, *, sds: float | None = None) -> Chosen:
    """Entries, at most `n_top` for each of `cells`, that `seen`, sparse, of the genes of `q`, does not store.

    `sds` None orders by the expected value, else by the expected eta plus so many of its standard deviations.
    """
    best = partial(_best_in_block, BlockPredictor(q), n_top, sds)
    if seen.cluster is None:
        parts = list(slices(len(cells), seen.shape[1], size=block_size(seen.shape[1])))
        blocks = ((seen.rows(cells[part]), q.at_cells(torch.from_numpy(cells[part]))) for part in parts)
        found = in_order(lambda block: best(*block), blocks)
        numbers = [torch.from_numpy(np.arange(part.start, part.stop)) for part in parts]
    else:
        order = np.argsort(cells, kind="stable")
        tasks = [of_task for _, of_task in seen.cluster.cut(cells[order])]
        placed = [seen.cluster.place(seen, some) for some in tasks]
        own = [q.at_cells(torch.from_numpy(some)) for some in tasks]
        found = seen.cluster.each(partial(_best_of_task, best), placed, own)
        numbers = list(torch.from_numpy(order).split([len(some) for some in tasks]))
    chosen = [(of_block[row], gene) for of_block, (row, gene) in zip(numbers, found, strict=True)]
    rows, genes = zip(*chosen, strict=True)
    return _best_first(q, torch.from_numpy(cells), torch.cat(rows), torch.cat(genes), sds)


def _best_in_block(
    predictor: BlockPredictor, n_top: int, sds: float | None, seen: sp.csr_array, some: Posterior
) -> tuple[Tensor, Tensor]:
    """Rows of a block of cells, and genes: the best that it does not store."""
    stored = sp.csr_array(seen).tocoo()
    score = predictor.expected(some) if sds is None else upper_bound(predictor.moments(some), sds)
    score[torch.from_numpy(stored.row).long(), torch.from_numpy(stored.col).long()] = -torch.inf
    best, at = score.topk(min(n_top, score.shape[1]), dim=1)
    row, rank = torch.nonzero(best > -torch.inf, as_tuple=True)
    return row, at[row, rank]


def _best_of_task(
    best: Callable[[sp.csr_array, Posterior], tuple[Tensor, Tensor]], seen: CellSource, q: Posterior
) -> tuple[Tensor, Tensor]:
    """The best of all cells of a source, block by block; on a worker."""
    rows, genes = [], []
    for part in slices(*seen.shape, size=block_size(seen.shape[1])):
        row, gene = best(seen.rows(part), q.at_cells(part))
        rows.append(row + part.start)
        genes.append(gene)
    return torch.cat(rows), torch.cat(genes)


def upper_bound(eta: Moments, sds: float) -> Tensor:
    """Expected eta plus so many of its standard deviations."""
    return eta.mean + sds * eta.var.sqrt()


def _best_first(q: Posterior, cells: Tensor, rows: Tensor, genes: Tensor, sds: float | None) -> Chosen:
    """Chosen entries in order, computed anew in double precision: blocks are in single."""
    eta = eta_of_pairs(q, cells[rows], genes)
    score = q.law(eta, cells[rows], genes).mean() if sds is None else upper_bound(eta, sds)
    order = score.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    return Chosen(rows[order], genes[order], replace(eta, mean=eta.mean[order], var=eta.var[order]))
