"""Processes ended at random moments: the input is untouched; the output is absent, the old one, or whole."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from typing import TYPE_CHECKING

from faults_trials import (
    Ended,
    command,
    fingerprint,
    hidden,
    in_child,
    measure,
    measure_writing,
    send_after,
    send_while_writing,
)

if TYPE_CHECKING:
    import random
    from pathlib import Path

SIGNALS = {"SIGTERM": (143, "scvi-lfm: terminated"), "SIGINT": (130, "scvi-lfm: interrupted")}


def make_data(folder: Path, n_cells: int = 40, n_genes: int = 30) -> None:
    """Small data, made in a process of its own: torch must not have worked in one that is forked."""

    def make() -> None:
        import numpy as np

        import scvi_lfm as lfm

        adata = lfm.datasets.simulate(n_cells, n_genes, 2, rng=1)
        adata.obs["chosen"] = np.arange(n_cells) < 15
        adata.write_h5ad(folder / "data.h5ad")
        adata.write_zarr(folder / "data.zarr")
        lfm.tl.fit(adata, 2, progress=False, max_epochs=50)
        adata.write_h5ad(folder / "fitted.h5ad")
        adata.write_zarr(folder / "fitted.zarr")

    ended = in_child(make)
    if ended.status:
        raise RuntimeError(ended.text)


def same_fit(path: Path, reference: Path) -> bool:
    """Whether a file reads, and holds what the reference holds."""

    def compare() -> int:
        import warnings

        import numpy as np

        from scvi_lfm._cli._files import read_data

        warnings.simplefilter("ignore")
        one, other = read_data(path), read_data(reference)
        for name in ("obsm", "varm"):
            fields, others = getattr(one, name), getattr(other, name)
            if set(fields) != set(others) or any(not np.array_equal(fields[key], others[key]) for key in fields):
                return 1
        same = one.obs.equals(other.obs) and one.var.equals(other.var) and np.array_equal(one.X, other.X)
        return 0 if same and set(one.uns["lfm"]) == set(other.uns["lfm"]) else 1

    return in_child(compare).status == 0


def kill(folder: Path, trials: int, which: signal.Signals, suffix: str, rng: random.Random) -> Counter:
    """End `scvi-lfm fit` by a signal, half of the times while it writes and half of them with an old output there."""
    source, out = folder / "data.h5ad", folder / "out" / f"out.{suffix}"
    old, reference = folder / f"old.{suffix}", folder / f"reference.{suffix}"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    arguments = ("fit", source, out, "--n-factors", 2, "--max-epochs", 5, "--tol", 1e9)
    for seed, path in ((1, old), (0, reference)):
        _remove(path)
        whole, seconds = measure(command(*arguments, "--seed", seed))
        if whole.status:
            raise RuntimeError(whole.text)
        out.rename(path)
    writing = measure_writing(command(*arguments), out.parent)
    before, of_old = fingerprint(source), fingerprint(old)
    found: Counter = Counter()
    for trial in range(trials):
        _remove(out)
        if trial % 2:
            (shutil.copytree if old.is_dir() else shutil.copy)(old, out)
        if trial // 2 % 2:
            stop = send_while_writing(out.parent, rng.uniform(0, writing), which)
        else:
            stop = send_after(rng.uniform(0, 1.02 * seconds), which)
        ended = in_child(command(*arguments), stop=stop)
        left = len(hidden(out.parent))
        problem = _problem(ended, left, which)
        if fingerprint(source) != before:
            problem = "input changed"
        if fingerprint(out) == (of_old if trial % 2 else ""):
            outcome = "old output" if trial % 2 else "no output"
        else:
            outcome = "whole output" if same_fit(out, reference) else "damaged output"
        if left:
            found["hidden folders until the next run"] += 1
        if problem or outcome == "damaged output":
            found[f"FAULT: {problem or outcome}"] += 1
            print(f"{which.name} {suffix} trial {trial}: {outcome}; {ended}", flush=True)
        found[outcome] += 1
    in_child(command(*arguments))
    if hidden(out.parent) or not same_fit(out, reference):
        found["FAULT: the next run left something"] += 1
    return found


def _problem(ended: Ended, left: int, which: signal.Signals) -> str:
    if which == signal.SIGKILL:
        # one from this run: earlier ones were taken away by it, if it came so far
        return "" if ended.status in {0, -signal.SIGKILL} and left <= 1 else f"status {ended.status}, {left} folders"
    status, said = SIGNALS[which.name]
    if left:
        return "hidden folder left"
    if ended.status == status and ended.lines[-1:] == [said] and len(ended.lines) <= 3:
        return ""
    if ended.status in {0, -which}:  # before the command began or after it had ended
        return ""
    return f"status {ended.status}"


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
