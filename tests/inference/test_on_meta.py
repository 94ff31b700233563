"""Every engine on a device that computes nothing: what a GPU would wait for within an epoch.

Within an epoch nothing is asked of the device but what is listed here by name, and nothing with an axis of cells or
genes is copied from it. What is on the CPU and should not be raises by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from on_meta import META, watched
from scvi_lfm.data import CellMatrix, restrict
from scvi_lfm.inference import FitOptions
from scvi_lfm.inference.engine import Engine
from scvi_lfm.inference.loop import _engine
from scvi_lfm.inference.normal import engine as normal_engine
from scvi_lfm.inference.progress import Silence
from scvi_lfm.inference.project import place_cells
from scvi_lfm.inference.trace import Trace
from scvi_lfm.posterior.anomalies.listing import Question, list_entries
from scvi_lfm.posterior.anomalies.scan import anomaly_scan
from scvi_lfm.posterior.dense_blocks import dense_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from on_meta import Event, Watch

N_CELLS, N_GENES, BATCH = 151, 83, 80
# no axis of cells or genes is as short, and no number of latents or steps here as large
SHORT = 32

# what the host reads of the device within an epoch, and why
READ = {
    "inference/normal/ranks.py: elbo_per_entry": "the bound, at the end of an epoch",
    "inference/normal/engine.py: _estimates": "bounds of some steps, at the end of an epoch and every 16 steps",
    "inference/observed/engine.py: ObservedEngine._sweep": "the bound, at the end of an epoch",
    "inference/observed/engine.py: ObservedEngine._pass_over_minibatches": "the bound, at the end of an epoch",
    "inference/counts/objective.py: elbo_per_entry": "the bound, at the end of an epoch",
}
# what it sends there, and why
SENT = {
    "data/batch.py: _to_device": "values of a minibatch, which lie on the host; one batch of all cells is sent once",
    "data/batch.py: _to_device.<locals>.<genexpr>": "their positions",
    "data/batch.py: Batch.known": "covariates of a minibatch",
    "inference/minibatches.py: Minibatches.numbered_epoch.<locals>.<genexpr>": "positions of the cells of a minibatch",
    "posterior/held_out.py: score_held_out.<locals>.<genexpr>": "entries of the cells that were held out",
    "inference/counts/objective.py: draws_and_log_dets": "random numbers, the same on every device; once an epoch",
}
# small matrices of which torch asks whether LAPACK succeeded, in one step at the most: one flag each
CHECKS_IN_A_STEP = 40


@dataclass(frozen=True)
class Case:
    """A fit by its likelihood and pattern of data."""

    likelihood: str
    observed: str = "all"
    held_out: bool = False
    covariates: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [self.likelihood, *(["stored"] if self.observed == "stored" else [])]
        parts += [name for name in ("held_out", "covariates") if getattr(self, name)]
        return "-".join([*parts, *map(str, self.options.values())])

    def matrix(self) -> CellMatrix:
        """Few cells and genes, on the host."""
        rng = np.random.default_rng(0)
        values = sp.random(N_CELLS, N_GENES, 0.3, format="csr", dtype=np.float32, rng=rng)
        if self.likelihood != "normal":
            values.data = np.ceil(3 * values.data) if self.likelihood != "bernoulli" else np.ones_like(values.data)
        mask = sp.random(N_CELLS, N_GENES, 0.05, format="csr", rng=rng) != 0
        if self.held_out and self.observed == "stored":
            mask = mask.multiply(values != 0).tocsr()
        matrix = restrict(
            CellMatrix.of(sp.csr_array(values)), self.observed, sp.csr_array(mask) if self.held_out else None
        )
        return replace(matrix, covariates=rng.normal(size=(N_CELLS, 2))) if self.covariates else matrix

    def engine(self, batch_size: int) -> Engine[Any]:
        """An engine whose tensors are all on the device."""
        chosen = {"noise": "shared", "family": "row_block"} | self.options
        levels = (1.0 if self.observed == "stored" else 0.0, 3.0) if self.likelihood == "ordinal" else None
        options = FitOptions(
            n_factors=2,
            likelihood=self.likelihood,
            prior_scales={},
            batch_size=batch_size,
            max_epochs=3,
            tol=1e-4,
            device=META,
            dtype=torch.float32,
            seed=0,
            progress=False,
            levels=levels,
            **chosen,
        )
        return _engine(self.matrix(), options)


CASES = [
    *(
        Case("normal", options={"noise": noise, "family": family})
        for noise, family in (
            ("shared", "row_block"),
            ("gene", "mean_field"),
            ("cell_gene", "row_block"),
            ("cell_gene", "mean_field"),
        )
    ),
    Case("normal", covariates=True),
    Case("normal", "stored"),
    Case("normal", "stored", held_out=True, options={"noise": "gene", "family": "mean_field"}),
    Case("normal", held_out=True),
    *(Case(likelihood) for likelihood in ("poisson", "negative_binomial", "bernoulli", "ordinal")),
    Case("negative_binomial", covariates=True, options={"family": "mean_field"}),
    Case("negative_binomial", held_out=True),
    Case("poisson", "stored"),
    Case("ordinal", "stored", held_out=True),
]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that repeat the same operations are few: an operation by its shapes takes longer than most do."""
    for name, value in {
        "counts.start.ENTRIES_SWEPT": 0.0,
        "counts.start.LEAST_SWEEPS": 1,
        "counts.start.LEAST_WITH_COVARIATES": 1,
        "counts.last_step.STEPS": 1,
        "counts.projection.STEPS": 2,
        "counts.dispersion.ROUNDS": 1,
        "normal.start.RANK0_SWEEPS": 1,
        "normal.start.FACTOR_SWEEPS": 1,
        "normal.cell_noise.ROUNDS": 2,
        "observed.start.MARGIN_SWEEPS": 1,
        "observed.engine.WIDE_SWEEPS": 1,
    }.items():
        monkeypatch.setattr(f"scvi_lfm.inference.{name}", value)
    monkeypatch.setattr("scvi_lfm.posterior.anomalies.gross_errors.STEPS", 1)
    monkeypatch.setattr("scvi_lfm.posterior.anomalies.share.SHARE_STEPS", 1)
    monkeypatch.setattr("scvi_lfm.posterior.anomalies.odd_counts.ROUNDS", 1)


def faults(watch: Watch, n_steps: int) -> list[str]:
    """What of the events of an epoch is not allowed."""
    found = [_fault(event) for event in watch]
    checks = sum(event.kind == "check" for event in watch)
    if checks > CHECKS_IN_A_STEP * n_steps:
        found.append(f"{checks} checks in {n_steps} steps")
    return [fault for fault in found if fault]


def _fault(event: Event) -> str:
    if event.kind == "read" and (event.place not in READ or event.width > SHORT):
        return f"{event.place} reads {event.shape}"
    if event.kind == "copy" and event.place not in SENT:
        return f"{event.place} sends {event.shape}"
    return ""


@pytest.mark.parametrize("batch_size", [N_CELLS, BATCH], ids=["one batch", "minibatches"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_waited_for_within_an_epoch(case, batch_size):
    bar = Silence()
    with watched() as watch:
        engine = case.engine(batch_size)
        state, _ = engine.start()
        for number in (1, 2):
            watch.clear()
            state, _ = engine.epoch(state, number, bar)
            assert faults(watch, engine.n_batches) == []
            assert sum(event.kind == "read" for event in watch) == 1
