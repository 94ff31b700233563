"""Calibration of `tl.check`: transforms of all entries, counted by stratum, in one reading."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from .._memory import naming_memory
from .._workers import in_order
from ..posterior.calibration import (
    BINS,
    SharedResiduals,
    count_transforms,
    coverage,
    kolmogorov_smirnov,
    most_abundant,
)
from ..posterior.dense_blocks import dense_blocks
from ..posterior.leave_one_out import LeaveOneOut
from ._check_words import ENOUGH, OVERALL, STRATUM, edge_names

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import CellMatrix
    from ..posterior import StoredFit
    from ..posterior.dense_blocks import DenseBlock

COUNT_EDGES = (0.01, 0.1, 1.0, 10.0)
N_STRATA, N_DEPTHS = 5, 4


@dataclass(frozen=True)
class _Counted:
    """What calibration asks of some cells."""

    transforms: Tensor  # (depths, strata, BINS): numbers of entries
    shared: SharedResiduals

    def plus(self, other: _Counted) -> _Counted:
        return _Counted(self.transforms + other.transforms, self.shared.plus(other.shared))


@naming_memory("check the fit")
def calibrate(
    matrix: CellMatrix, stored: StoredFit, device: torch.device, seed: int
) -> tuple[pd.DataFrame, np.ndarray, float]:
    """The report's `calibration`, `histogram` and `leftover`."""
    transforms, edges, leftover = _transforms(matrix, stored, device, seed)
    return *_tables(transforms.cpu(), edges, stored.level), leftover


def _transforms(matrix: CellMatrix, stored: StoredFit, device: torch.device, seed: int) -> tuple[Tensor, Tensor, float]:
    """Numbers of entries by depth, expected value and transform, the edges of expected values, and what is left."""
    loo, genes = LeaveOneOut(stored.posterior), most_abundant(stored.posterior.gene_mean[:, 0])
    depth = torch.as_tensor(_depth_strata(matrix), device=device)
    n_depths = int(depth.max()) + 1

    def transformed(block: DenseBlock) -> tuple[Tensor, Tensor, Tensor | None]:
        y = block.values()
        law = loo.law(y, block.cells)
        # a stream of its own for each block, whoever is at it
        draws = torch.Generator().manual_seed(seed + block.cells.start)
        return law.mean(), law.transform(y, draws), block.observed()

    def counted(cells: slice, expected: Tensor, pit: Tensor, observed: Tensor | None) -> _Counted:
        numbers = count_transforms(pit, expected, depth[cells], edges, n_depths, observed)
        some = pit[:, genes]
        if observed is not None:  # the middle of the scale says nothing about an entry that was not observed
            some = some.masked_fill(~observed[:, genes], 0.5)
        return _Counted(numbers, SharedResiduals.of(some))

    blocks = dense_blocks(matrix, device)
    first = next(blocks)
    expected, pit, observed = transformed(first)
    edges = _edges(expected if observed is None else expected[observed], stored)
    others = in_order(lambda block: counted(block.cells, *transformed(block)), blocks)
    total = functools.reduce(_Counted.plus, others, counted(first.cells, expected, pit, observed))
    return total.transforms, edges, total.shared.excess()


def _edges(expected: Tensor, stored: StoredFit) -> Tensor:
    if stored.posterior.likelihood.has_rate:
        return torch.tensor(COUNT_EDGES, dtype=torch.float32, device=expected.device)
    some = expected.flatten()[:: max(1, expected.numel() // 1_000_000)]
    return torch.quantile(some, torch.arange(1, N_STRATA, dtype=some.dtype, device=some.device) / N_STRATA)


def _depth_strata(matrix: CellMatrix) -> np.ndarray:
    totals = matrix.row_sums()
    return np.searchsorted(np.quantile(totals, np.arange(1, N_DEPTHS) / N_DEPTHS), totals)


def _tables(counts: Tensor, edges: Tensor, level: float) -> tuple[pd.DataFrame, np.ndarray]:
    names = edge_names(edges.tolist(), level)
    strata = [f"< {names[0]}", *(f"{low} to {high}" for low, high in zip(names, names[1:], strict=False))]
    strata.append(f"> {names[-1]}")
    parts = [("all", "all", counts.sum((0, 1)))]
    parts += [("expected", name, counts[:, k].sum(0)) for k, name in enumerate(strata)]
    parts += [("depth", f"quarter {k + 1}", counts[k].sum(0)) for k in range(len(counts))]
    rows, histogram = [], []
    for by, stratum, of in parts:
        n, held = int(of.sum()), coverage(of)
        low, high = OVERALL if by == "all" else STRATUM
        ok = n < ENOUGH or low <= held <= high
        rows.append({"by": by, "stratum": stratum, "n": n, "coverage": held, "ks": kolmogorov_smirnov(of), "ok": ok})
        histogram.append(of.view(20, BINS // 20).sum(1).double() / max(n, 1))
    return pd.DataFrame(rows), torch.stack(histogram).numpy()
