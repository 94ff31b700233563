"""What a fit holds in memory at its peak, from sizes alone: numbers of cells, genes, values and factors.

Arrays are counted in the units that their axes give, and the numbers in front of them say how many of a kind are alive
at once where most are: the tensors of the steps, their temporaries, and what the allocator keeps of earlier ones. The
last is why they are measured rather than counted (docs/plan.md tells how, and how well they hold).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..data.blocks import CELLS_PER_BLOCK, CELLS_PER_GPU_BLOCK
from ..linalg.packed import packed_size
from ..model.likelihoods import LIKELIHOODS
from .counts.engine import START_CELLS
from .normal.start import OVERSAMPLING

NORMAL, OBSERVED, COUNTS, PYRO = "normal", "observed", "counts", "pyro"
SINGLE, DOUBLE = 4, 8
# a value of a compressed block with its gene
VALUE = 8
# times the values of a block, what a GPU holds more of it: the next one, the transposed one, and what sorting takes
ON_GPU = 1.0 + 1.0 + 3.5
# code and small tables that libraries bring in when they are first used
LIBRARIES = 10 * 2**20


def engine_of(engine: str, likelihood: str, *, all_observed: bool) -> str:
    """Name of the steps that fit a likelihood: those of the room of this name, or Pyro's."""
    if engine == PYRO:
        return PYRO
    if not LIKELIHOODS[likelihood].linear:
        return COUNTS
    return NORMAL if all_observed else OBSERVED


@dataclass(frozen=True)
class Size:
    """Sizes from which the memory of a fit follows."""

    engine: str
    n_cells: int
    n_genes: int
    n_factors: int
    n_covariates: int
    n_stored: float  # values, about
    batch_size: int
    n_workers: int = 1
    is_sparse: bool = True
    in_memory: bool = True  # whether the values are held already
    read_in: bool = False  # or are read in once
    on_gpu: bool = False
    max_cov_bytes: float = float("inf")  # that covariances of cells may take
    own_pattern: float = 0.0  # entries of the mask, or of the pattern, of what is data

    @property
    def n_batches(self) -> int:
        """Minibatches in an epoch."""
        return -(-self.n_cells // self.batch_size)

    @property
    def latents(self) -> int:
        """Number of latents of a cell, or a gene: a, what is known, A."""
        return 1 + self.n_covariates + self.n_factors

    @property
    def keeps_cov(self) -> bool:
        """Whether the covariance of each cell is held."""
        return self.engine != COUNTS or self.n_cells * packed_size(self.latents) * SINGLE <= self.max_cov_bytes

    @property
    def bytes_per_cell(self) -> float:
        """Bytes of the values of a cell in a block."""
        if not self.is_sparse:
            return self.n_genes * SINGLE
        return self.n_stored / max(self.n_cells, 1) * VALUE

    @property
    def values(self) -> float:
        """Bytes of all values in memory."""
        return self.bytes_per_cell * self.n_cells


@dataclass(frozen=True)
class Demand:
    """Bytes by what they are for."""

    host: dict[str, float]
    device: dict[str, float]  # empty where the fit is on the CPU
    reading: float = 0.0  # in place of all of these, while the values are read in

    @property
    def n_bytes(self) -> int:
        """The peak in main memory, beyond what is held already."""
        return int(max(sum(self.host.values()), self.reading))

    @property
    def n_device_bytes(self) -> int:
        """The peak on the device."""
        return int(sum(self.device.values()))


def demand(size: Size) -> Demand:
    """The memory that a fit takes beyond what the process holds before it."""
    parts = {NORMAL: _normal, OBSERVED: _observed, COUNTS: _counts, PYRO: _pyro}[size.engine](size)
    results = _results(size)
    values = size.values if size.read_in and not size.in_memory else 0.0
    reading = 2 * values + LIBRARIES if values else 0.0
    if size.on_gpu:
        host = {"values read in": values, "blocks of cells": parts["blocks of cells"], "results": results}
        return Demand(host | {"libraries": LIBRARIES}, parts, reading)
    return Demand({"values read in": values} | parts | {"results": results, "libraries": LIBRARIES}, {}, reading)


def _blocks(size: Size, start: float) -> float:
    """Values of the block that a fit starts from, and of a step: copies of what the source holds."""
    in_a_batch = min(size.batch_size, size.n_cells) * size.bytes_per_cell
    more = ON_GPU if size.on_gpu and size.is_sparse else 0.0
    if size.n_batches == 1:
        return in_a_batch * (start + more)
    return in_a_batch * (start + 1 + more) + size.n_workers * _block(size) * size.bytes_per_cell


def _block(size: Size) -> int:
    """Cells of a block that one worker takes."""
    return min(CELLS_PER_GPU_BLOCK if size.on_gpu else CELLS_PER_BLOCK, size.batch_size, size.n_cells)


def _normal(size: Size) -> dict[str, float]:
    width = size.latents + 1
    per_gene, per_cell = width * DOUBLE, size.latents * DOUBLE
    oversampled = min(OVERSAMPLING, size.n_factors) * DOUBLE
    blocks = _blocks(size, start=1.0)
    if size.n_batches == 1 and size.is_sparse and not size.on_gpu:
        blocks = size.n_cells * size.bytes_per_cell * 1.25  # by gene, and squares of a block
    return {
        "genes": size.n_genes * (9 + 11 * size.n_workers) * max(per_gene, oversampled),
        "cells": size.n_cells * per_cell,
        "blocks of cells": blocks,
    }


def _observed(size: Size) -> dict[str, float]:
    packed = packed_size(size.latents + 1) * SINGLE
    return {
        "genes": size.n_genes * packed * (12 + 2 * size.n_workers),
        "cells": size.n_cells * (5.5 * packed + 3 * size.latents * DOUBLE),
        "blocks of cells": _blocks(size, start=3.0) + 3 * size.own_pattern * VALUE,
    }


def _counts(size: Size) -> dict[str, float]:
    packed, n_start = packed_size(size.latents + 1) * SINGLE, min(START_CELLS, size.n_cells)
    with_cov = size.n_cells if size.keeps_cov else n_start
    # at the end: those of the fit, of the factors that are left, in the stored gauge, and projected, block by block
    covariances = 4 * with_cov * packed_size(size.latents) * SINGLE
    dense = min(size.batch_size, size.n_cells) * size.n_genes * SINGLE
    return {
        "genes": size.n_genes * packed * 11,
        "cells": covariances + size.n_cells * 3 * size.latents * DOUBLE,
        "blocks of cells": 2.5 * dense + n_start * size.bytes_per_cell,
        "entries worked on": size.n_workers * 45 * 2**20,
    }


def _pyro(size: Size) -> dict[str, float]:
    square = size.latents**2 * SINGLE
    return {
        "genes": size.n_genes * square * 6,
        "cells": size.n_cells * (square * 6 + 3 * size.latents * DOUBLE),
        "blocks of cells": 6 * min(size.batch_size, size.n_cells) * size.n_genes * SINGLE,
    }


def _results(size: Size) -> float:
    """Bytes of what is written into the AnnData, in single precision."""
    own = packed_size(1 + size.n_factors) if size.engine in {OBSERVED, COUNTS} else 0
    of_cells = 2 * (1 + size.n_factors) + (own if size.keeps_cov else 0)
    of_genes = 2 * size.latents + own + 1
    return SINGLE * (size.n_cells * of_cells + size.n_genes * of_genes)
