"""Files that were cut off, or in which bits flipped: an error that names them, or a result that is finite."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING

from faults_rooms import COMMANDS, arguments_of
from faults_trials import command, fingerprint, hidden, in_child

if TYPE_CHECKING:
    import random
    from pathlib import Path

KINDS = ("cut off", "a bit", "eight bits", "a block of zeros")


def damage(values: bytes, kind: str, rng: random.Random) -> bytes:
    """The bytes of a file, with something wrong."""
    changed = bytearray(values)
    if kind == "cut off":
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == "a block of zeros":
        start = rng.randrange(len(changed))
        changed[start : start + 64] = bytes(len(changed[start : start + 64]))
        return bytes(changed)
    for _ in range(1 if kind == "a bit" else 8):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spoil(folder: Path, trials: int, suffix: str, rng: random.Random) -> Counter:
    """Damage the file that a command reads, in all ways in turn, and run the command."""
    found: Counter = Counter()
    out = folder / "of_damaged.h5ad"
    for trial in range(trials):
        name, kind = COMMANDS[trial % len(COMMANDS)], KINDS[trial // len(COMMANDS) % len(KINDS)]
        source = folder / f"{'data' if name == 'fit' else 'fitted'}.{suffix}"
        path = folder / f"damaged.{suffix}"
        _remove(path)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
        parts = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
        part = rng.choice([part for part in parts if part.stat().st_size])
        part.write_bytes(damage(part.read_bytes(), kind, rng))
        before = fingerprint(path)
        _remove(out)
        arguments = [path if argument == source else argument for argument in arguments_of(name, folder, out, suffix)]
        ended = in_child(command(*arguments))
        if ended.status == 0:
            finite = in_child(lambda: _finite(out))
            outcome = "a result" if finite.status == 0 else f"FAULT: {finite.text}"
        elif ended.status in {1, 2} and not out.exists() and len(ended.lines) == 1 and str(path) in ended.text:
            outcome = "error that names the file"
        else:
            outcome = "FAULT"
        if hidden(folder) or fingerprint(path) != before:
            outcome = "FAULT: something left or changed"
        if outcome.startswith("FAULT"):
            place = part.relative_to(path) if part != path else ""
            print(f"damaged {suffix} trial {trial}: {name}, {kind} {place}: {outcome}, {ended}", flush=True)
            kept = folder.parent / f"damaged_{name}_{trial}.{suffix}"
            _remove(kept)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, kept)
            outcome = "FAULT"
        elif ended.status and re.search(r"\((.*)\)$", ended.text) is None:
            found["of these, found by our own checks"] += 1
        found[outcome] += 1
    _remove(path)
    return found


def _finite(out: Path) -> int:
    """Whether all that a command computes is finite, but for genes that a fit does not have, as it warns."""
    import warnings

    import anndata as ad
    import numpy as np

    warnings.simplefilter("ignore")
    adata = ad.read_h5ad(out)
    if "lfm" in adata.varm and not np.isnan(adata.varm["lfm"]).all():
        adata = adata[:, ~np.isnan(adata.varm["lfm"]).all(axis=1)]
    fields = [adata.obsm, adata.varm, adata.obs.select_dtypes("number"), adata.var.select_dtypes("number")]
    for fields_of in fields:
        for name in fields_of:
            if not np.isfinite(np.asarray(fields_of[name], dtype=float)).all():
                raise ValueError(name)
    if "rank_genes_lfm" in adata.uns:
        for column in ("scores", "sd", "lfsr"):
            values = adata.uns["rank_genes_lfm"][column]
            if not all(np.isfinite(values[group]).all() for group in values.dtype.names):
                raise ValueError(column)
    return 0


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
