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
from scvi_lfm.data import CellMatrix, batch, restrict
from scvi_lfm.inference import FitOptions
from scvi_lfm.inference import engine as engine_module
from scvi_lfm.inference.engine import Engine
from scvi_lfm.inference.loop import engine_for
from scvi_lfm.inference.normal import engine as normal_engine
from scvi_lfm.inference.progress import Progress
from scvi_lfm.inference.project import place_cells
from scvi_lfm.inference.trace import Trace
from scvi_lfm.posterior import rates
from scvi_lfm.posterior.anomalies.listing import Question, list_entries
from scvi_lfm.posterior.anomalies.scan import anomaly_scan
from scvi_lfm.posterior.dense_blocks import DenseBlocks

if TYPE_CHECKING:
    from on_meta import Event, Watch

pytestmark = pytest.mark.slow

N_CELLS, N_GENES, BATCH = 151, 83, 80
# no axis of cells or genes is as short, and no number of latents or steps here as large
SHORT = 32

PAIRED = "inference/normal/paired_steps.py: PairedSteps.estimates"
# what the host reads of the device within an epoch, and why
READ = {
    "inference/normal/ranks.py: elbo_per_entry": "the bound, at the end of an epoch",
    PAIRED: "bounds of some steps, at the end of an epoch and every 16 steps",
    "inference/observed/engine.py: ObservedEngine._sweep": "the bound, at the end of an epoch",
    "inference/observed/engine.py: ObservedEngine.epoch": "the bound, at the end of an epoch",
    "inference/counts/objective.py: elbo_of_entries": "the bound, at the end of an epoch",
}
# what it sends there, and why
SENT = {
    "data/transfer.py: to_device": "values of a minibatch, which lie on the host; one batch of all cells is sent once",
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
        return engine_for(self.matrix(), options)


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
# one of each room
QUICK = {"normal-shared-row_block", "normal-stored", "negative_binomial"}
EACH_CASE = [case if str(case) in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


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
    reads = [event.place for event in watch if event.kind == "read"]
    if len(reads) > 1:
        found.append(f"{len(reads)} reads: {reads}")
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


@pytest.mark.half_slow
@pytest.mark.parametrize("batch_size", [N_CELLS, BATCH], ids=["one batch", "minibatches"])
@pytest.mark.parametrize("case", EACH_CASE, ids=str)
def test_nothing_is_waited_for_within_an_epoch(case, batch_size):
    bar = Progress()
    with watched() as watch:
        engine = case.engine(batch_size)
        state, _ = engine.start()
        for number in (1, 2):
            watch.clear()
            state, _ = engine.epoch(state, number, bar)
            assert faults(watch, engine.n_batches) == []


WAYS = {
    "item": lambda tensor: tensor.sum().item(),
    "float": lambda tensor: float(tensor.sum()),
    "bool": lambda tensor: bool((tensor > 0).all()),
    "cpu": lambda tensor: tensor.cpu(),
    "tolist": lambda tensor: tensor.tolist(),
    "nonzero": torch.nonzero,
    "mask": lambda tensor: tensor[tensor > 0],
    "masked": lambda tensor: tensor.clone().__setitem__(tensor > 0, tensor.clone().flatten()),
    "equal": lambda tensor: torch.equal(tensor, tensor),
    "unique": torch.unique,
    "number": lambda tensor: tensor.new_tensor(1.0),
    "list": lambda tensor: tensor[[0, 1]],
    "positions": lambda tensor: tensor[torch.tensor([0, 1])],
    "array": lambda tensor: torch.as_tensor(np.ones(2), device=tensor.device),
    "sent": lambda tensor: torch.ones(2).to(tensor.device),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_waits_is_seen(monkeypatch, way):
    """Each way in which a step would make the host wait is named with the place."""
    best_move = Engine._best_move

    def waits(self: Engine[Any], g: Any, moment: torch.Tensor) -> Any:
        WAYS[way](moment)
        return best_move(self, g, moment)

    state, engine = _begun()
    monkeypatch.setattr(Engine, "_best_move", waits)
    with watched() as watch:
        engine.epoch(state, 1, Progress())
    assert faults(watch, 1)
    assert all("inference/observed/engine.py: ObservedEngine._sweep" in fault for fault in faults(watch, 1))


_kept: list[Any] = []


def _begun() -> tuple[Any, Engine[Any]]:
    """A state and its engine, which no epoch changes."""
    if not _kept:
        engine = Case("normal", "stored").engine(N_CELLS)
        with watched():
            _kept[:] = [engine.start()[0], engine]
    return _kept[0], _kept[1]


def test_what_is_on_the_cpu_is_seen(monkeypatch):
    best_move = Engine._best_move
    state, engine = _begun()
    monkeypatch.setattr(
        Engine, "_best_move", lambda self, g, moment: best_move(self, g, moment @ torch.eye(4, dtype=torch.float64))
    )
    with watched(), pytest.raises(RuntimeError, match="on the CPU"):
        engine.epoch(state, 1, Progress())


@pytest.mark.half_slow
@pytest.mark.parametrize("case", [Case("normal"), Case("normal", options={"noise": "cell_gene"})], ids=str)
@pytest.mark.parametrize("batch_size", [N_CELLS, BATCH], ids=["one batch", "minibatches"])
def test_blocks_in_half_precision_are_not_waited_for_either(settings, monkeypatch, case, batch_size):
    made, half_product = [], batch.half_product
    monkeypatch.setattr(batch, "half_product", lambda *args: made.append(args[0].dtype) or half_product(*args))
    # of made-up numbers float32 would not show the noise, and values would be read in float64
    monkeypatch.setattr(engine_module, "noise_is_lost", lambda *_: False)
    settings.half_density = 0.0
    with watched() as watch:
        engine = case.engine(batch_size)
        state, _ = engine.start()
        watch.clear()
        made.clear()
        engine.epoch(state, 1, Progress())
    assert faults(watch, engine.n_batches) == []
    assert set(made) == {torch.float16}


@pytest.mark.half_slow
@pytest.mark.parametrize("case", [Case("negative_binomial"), Case("ordinal", "stored")], ids=str)
def test_variances_of_low_rank_are_not_waited_for(monkeypatch, case):
    made, near = [], rates.cross_approximation
    monkeypatch.setattr(rates, "cross_approximation", lambda *args: made.append(args[2]) or near(*args))
    monkeypatch.setattr(rates, "WORTHWHILE", np.inf)
    with watched() as watch:
        engine = case.engine(BATCH)
        state, _ = engine.start()
        for number in (1, 2):
            watch.clear()
            state, _ = engine.epoch(state, number, Progress())
            assert faults(watch, engine.n_batches) == []
    assert made


def test_a_fit_is_seldom_asked_whether_it_has_settled(monkeypatch):
    """An answer is waited for: at the end of an epoch, and every few steps."""
    monkeypatch.setattr(normal_engine, "STEPS_UNASKED", 3)
    with watched() as watch:
        engine = Case("normal").engine(20)
        state, _ = engine.start()
        watch.clear()
        engine.epoch(state, 2, Progress(), lambda estimates: False)
    assert engine.n_batches == 8
    assert [event.place for event in watch if event.kind == "read"] == [PAIRED] * 3


# of what comes after the last epoch, what has to know values with an axis of cells or genes, and why
AFTER = {
    "inference/counts/last_step.py: settle": "genes that still move are solved for alone, from values at the host",
    "inference/counts/projection.py: _converge": "cells that still move are solved for alone",
    "linalg/covariances.py: PackedUnderNoise.under": "whether the noise is the same",
}


@pytest.mark.half_slow
@pytest.mark.parametrize("all_genes", [True, False], ids=["all genes", "some genes"])
@pytest.mark.parametrize("case", EACH_CASE, ids=str)
def test_the_end_of_a_fit_and_projection_stay_on_the_device(case, all_genes):
    with watched() as watch:
        engine = case.engine(BATCH)
        state, _ = engine.start()
        engine.held_out(state)
        assert len(engine.ranks(state).elbo) == 3
        state = engine.leading(state, 1)
        watch.clear()
        posterior = engine.finish(state, Trace([(1.0, 1.0)], 0.0, converged=True)).posterior
        matrix = replace(case.matrix(), held_out=None)
        placed = place_cells(matrix, posterior, case.options.get("family", "row_block"), all_genes=all_genes)
    assert placed.cell_mean.device == META
    assert placed.cell_mean.shape[0] == N_CELLS
    large = {event.place for event in watch if event.kind == "read" and event.width > SHORT}
    assert large - set(AFTER) == set()


@pytest.mark.half_slow
@pytest.mark.parametrize("direction", ["both", "up"])
@pytest.mark.parametrize(
    "case",
    [
        case if str(case) in {*QUICK, "normal-covariates"} else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
        if not (case.options or case.held_out)
    ],
    ids=str,
)
def test_anomalies_stay_on_the_device(case, direction):
    """Entries are found and listed there; tails of counts are the host's."""
    with watched():
        engine = case.engine(N_CELLS)
        state, _ = engine.start()
        matrix, posterior = case.matrix(), engine.finish(state, Trace([], 0.0, converged=True)).posterior
        blocks = DenseBlocks(matrix, META)
        scan, cleaned, share = anomaly_scan(posterior, blocks, direction, 0.1)
        question = Question("either", 0.1, 100, share)
        found = list_entries(scan, cleaned, blocks, question, total=matrix.n_observed)
    assert found.cell_score.device == found.gene_score.device == META
    assert found.cell_score.shape == (N_CELLS,)
    assert found.gene_score.shape == (N_GENES,)
