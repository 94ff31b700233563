"""What the README tells people to paste works when pasted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import anndata as ad
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "GNLY" in printed
    assert "lfdr" in printed
    assert "X_lfm" in ad.read_h5ad("fitted.h5ad").obsm


def test_the_example_is_short() -> None:
    (example,) = blocks("python")
    calls = [line for line in example.splitlines() if line and not line.startswith(("import", "print"))]
    assert len(calls) <= 10


def test_the_two_commands_are_there_and_are_those_of_ci() -> None:
    commands = [block.strip() for block in blocks("bash")]
    assert commands[0] == "pip install uv && uv pip install torch --torch-backend=cpu"
    assert commands[1:] == ["pip install . && scvi-lfm demo", 'pip install -e ".[test]" && pytest']
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"scvi-lfm": "scvi_lfm._cli:main"}
    assert commands[2] in (ROOT / ".ci" / "run").read_text()


def test_it_is_short_enough_to_be_read() -> None:
    """Links are followed by tests/test_links.py."""
    assert len(README.splitlines()) < 90
