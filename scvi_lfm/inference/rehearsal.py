"""A fit of a few cells, phase by phase, to tell what that of all of them takes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .._workers import work_clock
from ..data.counted import Counted
from .loop import engine_for
from .progress import Progress
from .trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..data import CellMatrix
    from .options import FitOptions

# the second, which unlike the first has no minibatch that was seen before
EPOCH = 2


@dataclass(frozen=True)
class Phase:
    """A part of a fit."""

    seconds: float  # where nothing else runs and all workers are busy
    cells_read: int


@dataclass(frozen=True)
class Rehearsal:
    """Costs of the parts of a fit."""

    start: Phase
    epoch: Phase
    finish: Phase


def rehearse(matrix: CellMatrix, options: FitOptions) -> Rehearsal:
    """Run a start, one epoch and a finish."""
    source = Counted(matrix.source)
    phases: list[Phase] = []

    @contextmanager
    def phase() -> Iterator[None]:
        begun, before = _clock(options.device), source.tally.n_cells
        yield
        phases.append(Phase(_clock(options.device) - begun, source.tally.n_cells - before))

    engine = engine_for(replace(matrix, source=source), options)
    with phase():
        state, rank0 = engine.start()
    with phase():
        state, values = engine.epoch(state, EPOCH, Progress())
    with phase():
        engine.finish(state, Trace([(float(EPOCH), values[-1])], rank0, converged=True))
    return Rehearsal(*phases)


def _clock(device: torch.device) -> float:
    """Time of work, as few cells keep one worker busy; on a GPU time that has passed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return work_clock()
