r"""The best entries of each row that have not been seen, found block by block.

They are ordered by the expected value, or by an upper bound of eta,

.. math:: E[\eta_{ij}] + \Phi^{-1}(\mathrm{level}) \, \mathrm{var}(\eta_{ij})^{1/2}

whose second part is what is not known of the entry. The likelihood's own noise, which no choice changes, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import scipy.sparse as sp
import torch

from .._memory import naming_memory
from .._workers import in_order
from ..data.blocks import slices
from .dense_blocks import block_size
from .predictive import BlockPredictor, eta_of_pairs

if TYPE_CHECKING:
    import numpy as np
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
    predictor = BlockPredictor(q)

    def best(block: tuple[slice, sp.coo_array]) -> tuple[Tensor, Tensor]:
        part, stored = block
        score = _block_score(predictor, q.at_cells(torch.from_numpy(cells[part])), sds)
        score[torch.from_numpy(stored.row).long(), torch.from_numpy(stored.col).long()] = -torch.inf
        best, at = score.topk(min(n_top, score.shape[1]), dim=1)
        row, rank = torch.nonzero(best > -torch.inf, as_tuple=True)
        return row + part.start, at[row, rank]

    parts = slices(len(cells), seen.shape[1], size=block_size(seen.shape[1]))
    blocks = ((part, sp.csr_array(seen.rows(cells[part])).tocoo()) for part in parts)
    rows, genes = zip(*in_order(best, blocks), strict=True)
    return _in_order(q, torch.from_numpy(cells), torch.cat(rows), torch.cat(genes), sds)


def _block_score(predictor: BlockPredictor, some: Posterior, sds: float | None) -> Tensor:
    """Scores by which the entries of a block of cells are ordered, (cells, m)."""
    return predictor.expected(some) if sds is None else _upper(predictor.moments(some), sds)


def _upper(eta: Moments, sds: float) -> Tensor:
    return eta.mean + sds * eta.var.sqrt()


def _in_order(q: Posterior, cells: Tensor, rows: Tensor, genes: Tensor, sds: float | None) -> Chosen:
    """Chosen entries in order, computed anew in double precision: blocks are in single."""
    eta = eta_of_pairs(q, cells[rows], genes)
    score = q.law(eta, cells[rows], genes).mean() if sds is None else _upper(eta, sds)
    best_first = score.argsort(descending=True, stable=True)
    order = best_first[rows[best_first].argsort(stable=True)]
    return Chosen(rows[order], genes[order], replace(eta, mean=eta.mean[order], var=eta.var[order]))
