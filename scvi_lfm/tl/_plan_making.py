"""A plan from a few cells: what `tl.fit` would choose, read and hold, and about how long it would take."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .._memory import available_bytes
from .._workers import work_clock
from ..data.counted import CellSample
from ..data.gate import is_read_in
from ..data.kind import looks_like_expression
from ..data.normalised_as_read import can_be_judged_later
from ..data.opening import open_source
from ..inference.counts.engine import START_CELLS
from ..inference.demand import COUNTS, NORMAL, OBSERVED, PYRO, demand
from ..inference.rehearsal import Phase, rehearse
from ._fit_memory import size_of
from ._fit_prepare import can_be_checked_later, prepare_fit
from ._plan_record import Plan

if TYPE_CHECKING:
    from anndata import AnnData

    from .._fit_arguments import FitArguments
    from ..inference.demand import Size
    from ..inference.rehearsal import Rehearsal
    from ._fit_prepare import PreparedFit

# cells that are read, in a few runs from all over the data, which may be sorted
CELLS, RUNS = 4096, 4
# of these, cells that are fitted where a covariance of each makes them slow
CELLS_OF_COUNTS, CELLS_OBSERVED = 512, 2048
# times of a quarter of them tell what grows with their number, which is this share at the least
FEWER, LEAST_SLOPE = 4, 0.1
# epochs that fits took: Normals in one batch; minibatches, in steps; with observed entries alone; counts
EPOCHS, STEPS, LEAST_EPOCHS, EPOCHS_OBSERVED, EPOCHS_OF_COUNTS = 4, 20, 0.1, 6, 3
# with a number of factors to choose, several are fitted
TIMES_TO_CHOOSE = 2


def make_plan(adata: AnnData, given: FitArguments) -> Plan:
    """Plan of a fit with these arguments, which are checked as those of the fit are."""
    if isinstance(given.rng, np.random.Generator):
        given = replace(given, rng=copy.deepcopy(given.rng))
    n = adata.n_obs
    # asked of the names of all cells, and then known: no part of what is taken times the cells that a sample stands for
    _ = adata.obs_names.is_unique, adata.var_names.is_unique
    begun = work_clock()
    some = CellSample(evenly(n, CELLS))
    prepared = prepare_fit(adata, given, some)
    if prepared.arguments.observed == "stored":
        looks_like_expression(prepared.matrix.source)  # as the fit does, which warns
    checked = Phase(work_clock() - begun - some.work, some.tally.n_cells)
    observed, share = prepared.matrix.observed, n / max(len(some.cells), 1)
    where, n_stored, read_in, later = _values(adata, prepared, share)
    size = replace(
        size_of(prepared),
        n_cells=n,
        n_stored=n_stored,
        in_memory=where == "memory",
        read_in=read_in,
        own_pattern=0 if observed is None else observed.pattern.nnz * share,
    )
    needed, epochs = demand(size), _epochs(prepared, size)
    readings, seconds = {"check": 0.0 if later else checked.cells_read * share / n}, None
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


def _values(adata: AnnData, prepared: PreparedFit, share: float) -> tuple[str, float, bool, bool]:
    """Place of the values, number of those stored at the genes to fit, whether they are read in, or checked later."""
    source = open_source(adata, prepared.arguments.layer)
    n_sampled, where = prepared.matrix.source.n_stored * share, source.place
    everything = source.n_stored if source.knows_n_stored else n_sampled
    all_of_it = prepared.fitted.all() and prepared.matrix.observed is None
    read_in = where != "memory" and is_read_in(everything, source.dtype)
    later = bool(all_of_it) and not read_in and can_be_checked_later(prepared.arguments)
    return where, everything if all_of_it else n_sampled, read_in, later and can_be_judged_later(source, everything)


def _epochs(prepared: PreparedFit, size: Size) -> float:
    """Passes over the cells until convergence, as fits of many data sets took them."""
    usual: float = {COUNTS: EPOCHS_OF_COUNTS, OBSERVED: EPOCHS_OBSERVED}.get(size.engine, EPOCHS)
    if size.engine == NORMAL and size.n_batches > 1:
        usual = max(STEPS / size.n_batches, LEAST_EPOCHS)
    if prepared.options.choose_rank:
        usual *= TIMES_TO_CHOOSE
    return float(min(usual, prepared.options.max_epochs))


def _phases(prepared: PreparedFit, size: Size) -> dict[str, Phase]:
    """Start, an epoch and finish of a fit of all cells, from those of some."""
    most = {COUNTS: max(CELLS_OF_COUNTS, 2 * size.n_factors), OBSERVED: CELLS_OBSERVED}.get(size.engine, CELLS)
    n, n_some = size.n_cells, min(most, prepared.matrix.shape[0])
    if size.engine == COUNTS:
        begins, began = min(START_CELLS, n), min(START_CELLS, n_some)
    else:
        begins, began = size.batch_size, min(size.batch_size, n_some if size.n_batches == 1 else -(-n_some // 2))
    n_few = max(n_some // FEWER, size.n_factors + 2)
    if n_few >= n_some or n_some == n or (size.engine == NORMAL and size.n_batches > 1):
        found = _rehearsed(prepared, n_some, size)
        shares = {"start": begins / began, "epoch": n / n_some, "finish": n / n_some}
        return {name: _times(getattr(found, name), share) for name, share in shares.items()}
    # what does not grow with the number of cells shows where they are fewer
    few, found = _rehearsed(prepared, n_few, size), _rehearsed(prepared, n_some, size)
    return {
        "start": _of_all(begins, began, found.start, few.start, n_few),
        "epoch": _of_all(n, n_some, found.epoch, few.epoch, n_few),
        "finish": _of_all(n, n_some, found.finish, few.finish, n_few),
    }


def _rehearsed(prepared: PreparedFit, n_some: int, size: Size) -> Rehearsal:
    """A short fit of some of the cells that were read; with minibatches where one of all cells has them."""
    matrix, options = prepared.matrix, prepared.options
    if n_some < matrix.shape[0]:
        sample, log_size = evenly(matrix.shape[0], n_some), options.log_size
        options = replace(options, log_size=None if log_size is None else log_size[sample])
        matrix = matrix.at_cells(sample)
    batch = min(options.batch_size, n_some)
    if size.engine == NORMAL and size.n_batches > 1:
        batch = min(batch, -(-n_some // 2))
    return rehearse(matrix, replace(options, batch_size=batch))


def _times(phase: Phase, share: float) -> Phase:
    return Phase(phase.seconds * share, round(phase.cells_read * share))


def _of_all(n_cells: int, n_some: int, some: Phase, few: Phase, n_few: int) -> Phase:
    """A phase of all cells, on the line through that of some and of fewer."""
    slope = max((some.seconds - few.seconds) / (n_some - n_few), LEAST_SLOPE * some.seconds / n_some)
    return Phase(some.seconds + slope * (n_cells - n_some), round(some.cells_read * n_cells / n_some))
