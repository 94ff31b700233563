"""A fit of a few cells, phase by phase, to tell what that of all of them takes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..data.counted import Counted
from .loop import engine_for
from .progress import Silence
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

    seconds: float
    cells_read: int


@dataclass(frozen=True)
class Rehearsal:
    """What the parts of a fit took."""

    start: Phase
    epoch: Phase
    finish: Phase


def rehearse(matrix: CellMatrix, options: FitOptions) -> Rehearsal:
    """Start, one epoch and finish."""
    source = Counted(matrix.source)
    phases: list[Phase] = []

    @contextmanager
    def phase() -> Iterator[None]:
        begun, before = time.perf_counter(), source.tally.n_cells
        yield
        if options.device.type == "cuda":
            torch.cuda.synchronize(options.device)
        phases.append(Phase(time.perf_counter() - begun, source.tally.n_cells - before))

    engine = engine_for(replace(matrix, source=source), options)
    with phase():
        state, rank0 = engine.start()
    with phase():
        state, values = engine.epoch(state, EPOCH, Silence())
    with phase():
        engine.finish(state, Trace([(float(EPOCH), values[-1])], rank0, converged=True))
    return Rehearsal(*phases)
