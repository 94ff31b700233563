"""Calibration of `tl.check`: transforms of all entries, counted by stratum, in one reading."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch

from .._memory import naming_memory
from ..posterior.calibration import (
    BINS,
    SharedResiduals,
    count_transforms,
    coverage,
    kolmogorov_smirnov,
    most_abundant,
)
from ..posterior.dense_blocks import DenseBlocks
from ..posterior.leave_one_out import LeaveOneOut
from ._check_words import ENOUGH, OVERALL, STRATUM, edge_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..data import CellMatrix
    from ..posterior import CountPosterior, NormalPosterior, StoredFit
    from ..posterior.dense_blocks import DenseBlock

COUNT_EDGES = (0.01, 0.1, 1.0, 10.0)
N_STRATA, N_DEPTHS = 5, 4


# at the most, entries whose transforms are counted, but no fewer cells than so many
MOST_ENTRIES, LEAST_CELLS = 2**20, 500
# at the most, cells whose residuals are correlated, and entries of theirs that are held
MOST_CELLS, MOST_HELD = 4096, 2**26


@dataclass(frozen=True)
class _Looked:
    """Cells that are looked at: all, or some at random that stand for all. They are few, and read into memory."""

    cells: np.ndarray  # positions, increasing
    matrix: CellMatrix
    posterior: NormalPosterior | CountPosterior

    def at(self, cells: np.ndarray) -> _Looked:
        """Cells at some positions among these."""
        if len(cells) == len(self.cells) and self.matrix.source.place == "memory":
            return self
        rows = torch.from_numpy(cells).to(self.posterior.cell_mean.device)
        return _Looked(self.cells[cells], self.matrix.at_cells(cells), self.posterior.at_cells(rows))

    def at_genes(self, genes: Tensor) -> _Looked:
        """Values of the cells in some genes."""
        return _Looked(self.cells, self.matrix.at_genes(genes.cpu().numpy()), self.posterior.at_genes(genes))


@naming_memory("check the fit")
def calibrate(
    matrix: CellMatrix, stored: StoredFit, device: torch.device, seed: int
) -> tuple[pd.DataFrame, np.ndarray, float]:
    """The report's `calibration`, `histogram` and `leftover`."""
    (n, m), rng, q = matrix.shape, np.random.default_rng(seed), stored.posterior
    n_counted, n_correlated = how_many_cells(n, m)
    looked = _Looked(np.arange(n), matrix, q).at(_some(n, max(n_counted, n_correlated), rng))
    correlated = looked.at(_some(len(looked.cells), n_correlated, rng)).at_genes(most_abundant(q.gene_mean[:, 0]))
    leftover = _leftover(correlated, device, seed)
    counted = looked.at(_some(len(looked.cells), n_counted, rng))
    transforms, edges = _transforms(counted, _depth_strata(matrix), device, seed)
    return *_tables(transforms.cpu(), edges, stored.level), leftover


def how_many_cells(n_cells: int, n_genes: int) -> tuple[int, int]:
    """Number of cells whose transforms are counted, and of those whose residuals are correlated."""
    counted = max(MOST_ENTRIES // n_genes, LEAST_CELLS)
    correlated = min(MOST_CELLS, max(MOST_HELD // n_genes, LEAST_CELLS))
    return min(counted, n_cells), min(correlated, n_cells)


def _some(n_cells: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of cells at random, increasing."""
    return np.sort(rng.permutation(n_cells)[:size])


def _transform(looked: _Looked, seed: int) -> Callable[[DenseBlock], tuple[Tensor, Tensor, Tensor | None]]:
    """Function that gives expected values and transforms of the entries of a block, and which of them are data."""
    loo = LeaveOneOut(looked.posterior)

    def of_block(block: DenseBlock) -> tuple[Tensor, Tensor, Tensor | None]:
        y = block.values()
        law = loo.law(y, block.posterior)
        # a stream of its own for each block, whoever is at it
        draws = torch.Generator().manual_seed(seed + block.start)
        return law.mean(), law.transform(y, draws), block.observed()

    return of_block


def _leftover(looked: _Looked, device: torch.device, seed: int) -> float:
    """Measure of how far residuals of genes go together, over what noise gives."""
    transform = _transform(looked, seed)

    def of_block(block: DenseBlock) -> SharedResiduals:
        _, pit, observed = transform(block)
        # the middle of the scale says nothing about an entry that was not observed
        return SharedResiduals.of(pit if observed is None else pit.masked_fill(~observed, 0.5))

    parts = DenseBlocks(looked.matrix, device).each(of_block, looked.posterior)
    return functools.reduce(SharedResiduals.plus, parts).excess()


def _transforms(looked: _Looked, depth: np.ndarray, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of entries by depth of the cell, expected value and transform, and the edges of expected values.

    `depth` is the stratum of every cell, those that are not looked at among them, (n,).
    """
    transform, n_depths = _transform(looked, seed), int(depth.max()) + 1
    strata = torch.as_tensor(depth[looked.cells], device=device)
    edges, counts, start = None, torch.zeros((), dtype=torch.int64, device=device), 0
    for expected, pit, observed in DenseBlocks(looked.matrix, device).each(transform, looked.posterior):
        if edges is None:
            edges = _edges(expected if observed is None else expected[observed], looked.posterior)
        of_cells, start = strata[start : start + len(pit)], start + len(pit)
        counts = counts + count_transforms(pit, expected, of_cells, edges, n_depths, observed)
    return counts, cast("Tensor", edges)


def _edges(expected: Tensor, q: NormalPosterior | CountPosterior) -> Tensor:
    if q.likelihood.has_rate:
        return torch.tensor(COUNT_EDGES, dtype=torch.float32, device=expected.device)
    some = expected.flatten()[:: max(1, expected.numel() // 100_000)]
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
