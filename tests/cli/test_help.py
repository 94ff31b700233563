"""Help says what a command is for, groups its options, and gives examples that run when pasted."""

from __future__ import annotations

import argparse
import shlex
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from scvi_lfm._cli import main
from scvi_lfm._cli._parser import build_parser
from scvi_lfm._fit_arguments import ARGUMENTS, FITTING, MODEL, READ, WRITTEN

if TYPE_CHECKING:
    from pathlib import Path


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


def examples_in(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("  scvi-lfm ")]


COMMANDS = commands()
TEXTS = [parser.format_help() for parser in (build_parser(), *COMMANDS.values())]
EXAMPLES = sorted({line for text in TEXTS for line in examples_in(text)})


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str) -> None:
    text = COMMANDS[name].format_help()
    assert text.startswith(f"usage: scvi-lfm {name} ")
    purpose = " ".join(COMMANDS[name].description.partition("\n\n")[0].split())
    assert purpose.endswith(".")
    assert purpose.count(". ") == 0, "one sentence"
    assert all(line.startswith(f"scvi-lfm {name} ") or line == f"scvi-lfm {name}" for line in examples_in(text))
    assert examples_in(text)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_group_and_says_what_it_is_for(name: str) -> None:
    for group in COMMANDS[name]._action_groups[:2]:  # those that argparse makes by itself
        assert group._group_actions == []
    assert all(action.help for action in COMMANDS[name]._actions)


def test_usage_names_the_files_of_the_command() -> None:
    for name, parser in COMMANDS.items():
        files = [action.metavar for action in parser._actions if not action.option_strings]
        usage = parser.format_usage().split(name, 1)[1]
        assert [word.strip("[]") for word in usage.split() if word.strip("[]") in files] == files


def test_options_of_fit_are_all_in_a_known_group() -> None:
    assert {known.group for known in ARGUMENTS.values()} == {READ, MODEL, FITTING, WRITTEN}
    text = COMMANDS["fit"].format_help()
    options = [f"--{known.option or name.replace('_', '-')} " for name, known in ARGUMENTS.items() if known.help]
    assert [option for option in options if option not in text] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples read, under their names. Not to be written into."""
    folder = tmp_path_factory.mktemp("examples")
    counts = lfm.datasets.simulate(60, 60, 3, likelihood="poisson", mu=0.5, depth_spread=0.2, rng=1)
    counts.layers["counts"] = counts.X.copy()
    counts.obs["leiden"] = pd.Categorical(np.array(["1", "3", "7"])[np.arange(60) % 3])
    counts.obs["batch"] = pd.Categorical(np.array(["a", "b"])[np.arange(60) // 30])
    counts.var_names = ["CD3E", *counts.var_names[1:]]
    counts.obsm["X_pca"] = counts.obsm["A"]
    counts.obs["is_stimulated"] = np.arange(60) % 2 == 0
    counts.write_h5ad(folder / "counts.h5ad")
    counts.write_h5ad(folder / "new_counts.h5ad")
    counts.write_zarr(folder / "data.zarr")
    peaks = counts.copy()
    peaks.X = (peaks.X > 0).astype(np.float32)
    peaks.write_h5ad(folder / "peaks.h5ad")
    lfm.tl.fit(counts, 2, progress=False)
    counts.write_h5ad(folder / "fitted.h5ad")
    results = [str(folder / "counts.h5ad"), str(folder / "results.h5ad"), "--results-only", "--n-factors", "2"]
    assert main(["fit", *results]) == 0
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.half_slow
def test_example_runs(example: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(example)[1:]
    if arguments[0] == "demo":  # which has tests of its own
        build_parser().parse_args(arguments)
        return
    for path in folder.iterdir():
        if path.name in arguments:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    named = {text for text in arguments[1:] if text.endswith((".h5ad", ".zarr", ".csv", ".html"))}
    assert named <= {path.name for path in tmp_path.iterdir()}
