"""A plan from a few cells: what `tl.fit` would choose, read and hold, and about how long it would take."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .._memory import available_bytes
from ..data import MemorySource
from ..data.counted import Sample
from ..data.dask_chunks import DaskSource
from ..data.gate import is_read_in
from ..data.on_disk import SparseFile
from ..data.opening import open_source
from ..data.selected import Selected
from ..inference.demand import COUNTS, NORMAL, OBSERVED, PYRO, START_OF_COUNTS, demand
from ..inference.rehearsal import Phase, rehearse
from ._fit_memory import size_of
from ._fit_prepare import prepare_fit
from ._plan_record import Plan

if TYPE_CHECKING:
    from anndata import AnnData

    from .._fit_arguments import FitArguments
    from ..inference.demand import Size
    from ._fit_prepare import PreparedFit

# cells that are read, in a few runs from all over the data, which may be sorted
CELLS, RUNS = 4096, 4
# of these, cells of counts that are fitted, whose time goes by genes rather than by values
CELLS_OF_COUNTS = 512
# epochs that fits took: Normals in one batch; minibatches, in steps; with observed entries alone; counts
EPOCHS, STEPS, LEAST_EPOCHS, EPOCHS_OBSERVED, EPOCHS_OF_COUNTS = 12, 30, 0.1, 12, 3
# with a number of factors to choose, several are fitted
TIMES_TO_CHOOSE = 2


def make_plan(adata: AnnData, given: FitArguments) -> Plan:
    """What a fit with these arguments would be; the arguments are checked as those of the fit are."""
    if isinstance(given.rng, np.random.Generator):
        given = replace(given, rng=copy.deepcopy(given.rng))
    n, begun = adata.n_obs, time.perf_counter()
    some = Sample(evenly(n, CELLS))
    prepared = prepare_fit(adata, given, some)
    checked = Phase(time.perf_counter() - begun - some.seconds, some.tally.n_cells)
    observed, share = prepared.matrix.observed, n / max(len(some.cells), 1)
    where, n_stored, read_in = _values(adata, prepared, share)
    size = replace(
        size_of(prepared),
        n_cells=n,
        n_stored=n_stored,
        in_memory=where == "memory",
        read_in=read_in,
        own_pattern=0 if observed is None else observed.pattern.nnz * share,
    )
    needed, epochs = demand(size), _epochs(prepared, size)
    readings, seconds = {"check": checked.cells_read * share / n}, None
    if size.engine != PYRO:
        phases = _phases(prepared, size)
        readings |= {name: phase.cells_read / n for name, phase in phases.items()}
        n_read = sum(readings.values()) + (epochs - 1) * readings["epoch"]
        to_read = 0.0 if where == "memory" else some.seconds * share * (1 if read_in else n_read)
        computed = sum(phase.seconds * (epochs if name == "epoch" else 1) for name, phase in phases.items())
        seconds = checked.seconds * share + to_read + computed
    return Plan(
        n_cells=n,
        n_genes=size.n_genes,
        n_stored=int(size.n_stored),
        n_factors=size.n_factors,
        likelihood=prepared.options.likelihood,
        n_judged=len(some.cells),
        engine=size.engine,
        values=where,
        read_in=read_in,
        batch_size=size.batch_size,
        n_batches=size.n_batches,
        keeps_covariances=None if size.engine == NORMAL else size.keeps_cov,
        device=str(prepared.options.device),
        epochs=epochs,
        readings=readings,
        parts={name: int(part) for name, part in needed.host.items()},
        host_bytes=needed.n_bytes,
        held_bytes=int(size.values) if size.in_memory else 0,
        available_bytes=available_bytes(),
        device_bytes=needed.n_device_bytes,
        seconds=seconds,
    )


def evenly(n_cells: int, count: int) -> np.ndarray:
    """Positions of about `count` cells, in a few runs of neighbours evenly spaced, or of all."""
    if n_cells <= count:
        return np.arange(n_cells)
    starts = np.linspace(0, n_cells - count // RUNS, RUNS).astype(int)
    return np.unique(starts[:, None] + np.arange(count // RUNS))


def _values(adata: AnnData, prepared: PreparedFit, share: float) -> tuple[str, float, bool]:
    """Where the values lie, how many are stored at the genes to fit, and whether they are read in."""
    source = open_source(adata, prepared.arguments.layer)
    n_sampled = prepared.matrix.source.n_stored * share
    lies = source.source if isinstance(source, Selected) else source
    known = isinstance(source, MemorySource | SparseFile) or not source.is_sparse
    n_stored = (
        source.n_stored * prepared.matrix.shape[1] / max(source.shape[1], 1) if not source.is_sparse else n_sampled
    )
    if known and prepared.fitted.all() and prepared.matrix.observed is None:
        n_stored = source.n_stored
    if isinstance(source, MemorySource):
        return "memory", n_stored, False
    everything = source.n_stored if known else n_sampled
    return "dask" if isinstance(lies, DaskSource) else "file", n_stored, is_read_in(everything, source.dtype)


def _epochs(prepared: PreparedFit, size: Size) -> float:
    """Passes over the cells until convergence, as fits of many data sets took them."""
    usual: float = {COUNTS: EPOCHS_OF_COUNTS, OBSERVED: EPOCHS_OBSERVED}.get(size.engine, EPOCHS)
    if size.engine == NORMAL and size.n_batches > 1:
        usual = max(STEPS / size.n_batches, LEAST_EPOCHS)
    if prepared.options.choose_rank:
        usual *= TIMES_TO_CHOOSE
    return float(min(usual, prepared.options.max_epochs))


def _phases(prepared: PreparedFit, size: Size) -> dict[str, Phase]:
    """Start, epoch and finish of a fit of all cells, from those of some."""
    matrix, options, n = prepared.matrix, prepared.options, size.n_cells
    counts = size.engine == COUNTS
    most = max(CELLS_OF_COUNTS, 2 * options.n_factors) if counts else CELLS
    sample = evenly(matrix.shape[0], most)
    if len(sample) < matrix.shape[0]:
        log_size = options.log_size
        options = replace(options, log_size=None if log_size is None else log_size[sample])
        matrix = matrix.at_cells(sample)
    n_some = len(sample)
    batch = min(options.batch_size, n_some)
    if size.n_batches > 1 and n_some < n:
        batch = min(batch, -(-n_some // 2))
    found = rehearse(matrix, replace(options, batch_size=batch))
    begins, began = (min(START_OF_COUNTS, n), min(START_OF_COUNTS, n_some)) if counts else (size.batch_size, batch)
    return {
        "start": _times(found.start, begins / began),
        "epoch": _times(found.epoch, n / n_some),
        "finish": _times(found.finish, n / n_some),
    }


def _times(phase: Phase, share: float) -> Phase:
    return Phase(phase.seconds * share, round(phase.cells_read * share))
